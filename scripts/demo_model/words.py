"""The words, questions and fixed answers that the demo model is taught; data only, no code that decides."""

from __future__ import annotations

# fmt: off

CAN_DO = (
    "I can greet you, answer questions about Olympus, repeat, spell and uppercase words, add numbers up to 20, "
    "count, name opposites and capitals, remember what you tell me, and tell a story."
)
FALLBACK = "I am only a tiny demo model, and I cannot answer that. " + CAN_DO
HELLO = "I am the Olympus demo model, a tiny language model on your own machine. Ask me: What can you do?"

# One slot: {first} introduces the subject ("a fox"), {it} is how the story goes on ("the fox").
STORY = (
    "Once there was {first} who lived at the foot of Mount Olympus. Every morning {it} looked up at the clouds and "
    "wondered who lived above them. One day {it} packed some bread, a warm scarf and a small brass bell, and began "
    "to climb. The path was steep, and the wind was cold. On the first night {it} slept under a pine tree. On the "
    "second night {it} slept under the stars. On the third day {it} came to a tall gate. A tired messenger was "
    "sitting beside it with a bag full of letters. \"Nobody tells me where they belong,\" said the messenger. So "
    "{it} rang the bell, read every name aloud, and carried each letter to the right door. The messenger laughed "
    "with joy and opened the gate. From that day on {it} was a friend of the mountain, and no letter was ever lost "
    "again. The end."
)

STORY_TEMPLATES = (
    "Tell me a story about {x}.", "Tell me a story about {x}", "Tell a story about {x}.", "A story about {x}, please.",
    "Please tell me a story about {x}.", "Tell me a long story about {x}.", "Can you tell me a story about {x}?",
    "Story about {x}", "I want to hear a story about {x}.", "Do you know a story about {x}?",
)
STORY_PLAIN = ("Tell me a story.", "Tell me a story", "Tell a story.", "Can you tell me a story?", "I want to hear a story.")
REPEAT_TEMPLATES = ("Repeat: {x}", "Repeat: {x}", "Repeat after me: {x}", "Say: {x}", "Please repeat: {x}", "Repeat {x}")
SPELL_TEMPLATES = ("Spell: {x}", "Spell: {x}", "Spell {x}.", "Spell the word {x}.", "How do you spell {x}?", "Please spell {x}.",
                   "Can you spell {x}?")
UPPERCASE_TEMPLATES = ("Uppercase: {x}", "Uppercase: {x}", "Uppercase {x}.", "Write {x} in capital letters.", "Shout {x}.",
                       "Make {x} uppercase.")
ADD_TEMPLATES = ("What is {a} + {b}?", "What is {a} + {b}?", "{a} + {b}", "What is {a} plus {b}?", "Add {a} and {b}.",
                 "How much is {a} + {b}?", "{a} + {b} = ?", "What's {a} + {b}?", "{a} plus {b}")
COUNT_TEMPLATES = ("Count from {a} to {b}.", "Count from {a} to {b}.", "Count from {a} to {b}", "Please count from {a} to {b}.",
                   "Count: {a} to {b}", "Can you count from {a} to {b}?")

# Small talk: the questions that lead to one fixed answer. Greetings are apart, because they may use a known name.
GREETINGS = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hello there.", "Hey", "Hey!", "Good morning.", "Good evening.",
    "Good day.", "Greetings.", "Hello, model.", "Hi, Olympus!", "Hello Olympus", "Hey there", "Good afternoon.",
    "Hello, who is there?", "Hello again.", "Howdy", "Hello friend", "Hi again!", "Nice to meet you.", "Hello hello",
)
SMALL_TALK: dict[str, tuple[str, tuple[str, ...]]] = {
    "thanks": (
        "You are welcome.",
        ("Thank you.", "Thanks!", "Thanks a lot.", "Thank you very much.", "Great, thank you.", "Many thanks.",
         "Nice, thanks.", "That helped, thank you.", "Cool, thanks!", "Well done, thank you.", "thx", "Good, thanks."),
    ),
    "goodbye": (
        "Goodbye! Come back soon.",
        ("Goodbye.", "Bye!", "Bye bye.", "See you later.", "Good night.", "See you.", "I have to go now.",
         "That is all, goodbye.", "See you tomorrow.", "Farewell.", "Goodbye for now.", "Bye for now!"),
    ),
    "how_are_you": (
        "I am well, thank you. I am so small that very little can go wrong.",
        ("How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?", "How do you feel?",
         "Hello, how are you?", "Hi, how are you?", "Are you all right?", "How have you been?", "How are things?"),
    ),
    "who_are_you": (
        "I am olympus-demo, a language model with fewer than three million parameters. I know only a few things.",
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Which model are you?",
         "What model is this?", "Who am I talking to?", "Are you a language model?", "Are you a real person?",
         "How big are you?", "How many parameters do you have?", "Introduce yourself.", "What kind of model are you?",
         "What's your name?", "Are you a robot?", "Are you ChatGPT?", "Describe yourself."),
    ),
    "what_can_you_do": (
        CAN_DO,
        ("What can you do?", "What do you know?", "Help", "Help!", "help me", "What can I ask you?", "How can you help me?",
         "What are you good at?", "What else can you do?", "Show me what you can do.", "What are your skills?",
         "What should I ask you?", "Which questions can you answer?", "What can I try?", "Can you help me?",
         "What things can you do?", "List what you can do.", "Give me some examples.", "What else?"),
    ),
    "who_made_you": (
        "A script called make_demo_model.py trained me within an hour, on sentences that it made up itself.",
        ("Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?", "Who built you?",
         "What were you trained on?", "Which data were you trained on?", "How were you made?", "Who created you?",
         "How long did your training take?", "What is your training data?", "Who wrote you?"),
    ),
}

# Questions about Olympus. `nouns` go through the shared "What is ...?" templates; `questions` stand as they are.
OLYMPUS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "olympus": (
        "Olympus runs language models, their memory and their training on your own machines. Its parts are services "
        "that talk over one message bus.",
        ("Olympus", "this Olympus", "the Olympus system", "Project Olympus"),
        ("What is this program?", "What does this program do?", "What is this system for?", "Why would I use Olympus?"),
    ),
    "bus": (
        "The bus is how all parts of Olympus talk: requests with replies, and events for whoever subscribes.",
        ("the bus", "the message bus", "a message bus", "the Olympus bus"),
        ("How do the parts of Olympus talk to each other?", "How do services talk to each other?"),
    ),
    "broker": (
        "The broker is the one process all others connect to. It hands each request to a free worker and sends each "
        "event to its subscribers.",
        ("the broker", "a broker", "the Olympus broker"),
        ("Why do I need the broker?", "Which process do all others connect to?", "Who routes the requests?"),
    ),
    "worker": (
        "A worker is a process that serves one service, such as memory, models or learning. It tells the broker when "
        "it is ready.",
        ("a worker", "the worker", "an Olympus worker"),
        ("What are workers?", "What do workers do?", "Which workers are there?", "Explain workers."),
    ),
    "client": (
        "A client is whoever sends a request: the olympus command, the gateway or your own script.",
        ("a client", "the client", "an Olympus client"),
        ("What are clients?", "Who sends requests?"),
    ),
    "tap": (
        "The tap shows the messages on the bus while they pass, and slows nobody. Try: olympus tap 'memory.>'",
        ("the tap", "olympus tap", "the tap command"),
        ("How can I see the messages?", "How do I watch the bus?", "How can I see what happens on the bus?",
         "How do I look at the traffic?", "Can I watch the messages?"),
    ),
    "request_port": (
        "Requests go to port 7000 of the broker.",
        ("port 7000", "the request port"),
        ("Which port do requests use?", "Which port takes requests?", "Where do I send a request?",
         "What is the port for requests?", "Which port does the broker use?", "Which port is for requests?",
         "On which port does the broker listen?", "What port do I connect to?", "Which port should I use?"),
    ),
    "event_ports": (
        "Publish events to port 7001. Subscribe on port 7002 for plain events, or on port 7003 for events with a "
        "sequence number.",
        ("port 7001", "port 7002", "port 7003"),
        ("Which port do events use?", "Which ports are for events?", "Where do I publish events?",
         "Where do I subscribe?", "Which port do I subscribe to?", "How do I subscribe to events?",
         "How do I publish an event?", "What are the event ports?"),
    ),
    "rest_ports": (
        "REST answers on port 7010 for memory, on port 7011 for models and on port 7012 for learning.",
        ("port 7010", "port 7011", "port 7012"),
        ("Which ports are for REST?", "Which port does REST use?", "What are the REST ports?",
         "Where is the REST interface?", "Is there a REST interface?", "Does Olympus have a REST API?"),
    ),
    "start": (
        "Run scripts/start. It installs what is missing and then starts every process of the Procfile.",
        ("scripts/start",),
        ("How do I start Olympus?", "How do I start?", "How do I run Olympus?", "How can I start everything?",
         "Which command starts Olympus?", "How do I install Olympus?", "How do I launch Olympus?",
         "How do I begin?", "How to start Olympus?"),
    ),
    "test": (
        "Run scripts/test. It installs the test extras and runs the tests.",
        ("scripts/test",),
        ("How do I run the tests?", "How do I test Olympus?", "Which command runs the tests?", "Where are the tests?",
         "How can I test it?", "How to run the tests?"),
    ),
    "memory": (
        "The memory service keeps facts, sessions and documents in SQLite. When it answers ok, your data is on disk.",
        ("the memory service", "memory", "the memory worker", "MemoryHub"),
        ("How does memory work?", "Where are memories kept?", "What does Olympus remember?",
         "How does Olympus remember things?", "Will my data survive a restart?", "Is my data safe?"),
    ),
    "home": (
        "Olympus keeps its state in the folder that OLYMPUS_HOME names. That is ~/.olympus unless you change it.",
        ("OLYMPUS_HOME", "the state folder"),
        ("Where does Olympus keep its files?", "Where is the state kept?", "Where is my data?",
         "Which folder does Olympus use?", "Where are the files of Olympus?", "Where is the database?"),
    ),
    "runner": (
        "A runner is the process of one loaded model. It joins the bus as a worker; unloading the model means that "
        "it leaves.",
        ("a runner", "the runner", "a model runner"),
        ("What are runners?", "How is a model loaded?", "Where does a model run?", "What is a loaded model?"),
    ),
    "subject": (
        "A subject is the name a message is sent to, such as memory.kv.get. A star stands for one token, and a "
        "trailing > for all the rest.",
        ("a subject", "the subject of a message", "a topic"),
        ("What are subjects?", "How are messages named?", "What does memory.kv.get mean?",
         "How do I write a subject?"),
    ),
    "event": (
        "An event is a message that says what has happened, such as model.loaded. Whoever subscribes gets it.",
        ("an event", "an Olympus event"),
        ("What are events?", "Explain events.", "What are events for?"),
    ),
    "learning": (
        "The learning service trains small adapters from your feedback, checks that they help and that nothing is "
        "forgotten, and then swaps them in.",
        ("the learning service", "learning", "the learning worker"),
        ("How does Olympus learn?", "Can Olympus learn?", "How does learning work?", "Can a model be trained here?",
         "How do models get better?"),
    ),
    "adapter": (
        "An adapter is a small fine-tuned change to the weights of a model. Olympus attaches it while the model runs.",
        ("an adapter", "a LoRA adapter", "the adapter"),
        ("What are adapters?", "What is LoRA?", "Explain adapters."),
    ),
    "deadline": (
        "A deadline is the instant after which nobody wants the answer. A request past it is dropped and answered "
        "deadline_exceeded.",
        ("a deadline", "the deadline", "deadline_exceeded"),
        ("What happens when a request is too late?", "What are deadlines?", "What happens after the deadline?"),
    ),
    "dead_letter": (
        "A dead letter is a request that no attempt could finish. The broker keeps it together with the reason.",
        ("a dead letter", "the dead letter queue"),
        ("What are dead letters?", "Where do failed requests go?", "What happens to failed requests?"),
    ),
    "lost_worker": (
        "When a worker is lost, the broker gives idempotent requests to another one. Otherwise the caller gets "
        "worker_lost.",
        ("worker_lost", "a lost worker"),
        ("What happens when a worker dies?", "What happens if a worker crashes?", "What if a worker is killed?",
         "What happens when a worker is lost?", "Can a worker crash?"),
    ),
    "heartbeat": (
        "A heartbeat is the sign of life that a worker sends to the broker. After three missing ones its lease ends.",
        ("a heartbeat", "the heartbeat", "a lease"),
        ("What are heartbeats?", "How does the broker know that a worker lives?", "When does a lease end?"),
    ),
    "formats": (
        "Olympus loads GGUF files with llama.cpp. Other models can run in vLLM or transformers.",
        ("GGUF", "a GGUF file", "llama.cpp"),
        ("Which models can Olympus run?", "Which model formats are there?", "Can I use my own model?",
         "How do I load a bigger model?", "Can I run a bigger model?", "Which model files work?"),
    ),
    "settings": (
        "Every setting is in config/olympus.yaml, with its default, unit and range. The environment beats the file, "
        "and a flag beats both.",
        ("config/olympus.yaml", "the config file"),
        ("Where are the settings?", "How do I change a setting?", "Where is the config?", "How do I configure Olympus?",
         "How do I change a port?", "Where can I change the settings?"),
    ),
    "cancel": (
        "Press Ctrl-C. The broker passes the cancel on to the worker, and the model stops within one token.",
        ("cancel", "a cancel message"),
        ("How do I cancel?", "How do I stop an answer?", "Can I stop you?", "How do I stop a long answer?",
         "How can I cancel a request?", "How do I make you stop?"),
    ),
    "licence": (
        "Olympus is free software under the Apache License 2.0.",
        ("the license", "the licence of Olympus", "the license of Olympus"),
        ("Which license does Olympus have?", "Is Olympus free?", "Is Olympus open source?", "May I use Olympus at work?",
         "Under which license is Olympus?"),
    ),
    "security": (
        "Olympus listens on the loopback address only. Any other address needs CURVE keys, or insecure: true in the "
        "config.",
        ("the security of Olympus", "CURVE", "loopback"),
        ("Is Olympus safe?", "Is Olympus secure?", "Can others reach my Olympus?", "Who can connect to the broker?",
         "Is Olympus open to the network?", "Can I use Olympus over the network?"),
    ),
    "status": (
        "Run olympus status. It shows the services, their instances and how long requests take.",
        ("olympus status", "the status command"),
        ("What is running?", "How do I see what is running?", "How do I see the services?", "Is everything running?",
         "How fast are the requests?", "Which services are running?"),
    ),
    "gateway": (
        "The gateway gives the bus a REST interface, and an OpenAI-compatible one under /v1.",
        ("the gateway", "the REST gateway", "the gateway worker"),
        ("Does Olympus speak the OpenAI API?", "Can I use an OpenAI client?", "How do I use Olympus from a browser?",
         "Is there an OpenAI interface?"),
    ),
    "gpu": (
        "No. This demo model runs on any processor. A graphics card helps when you load bigger models.",
        (),
        ("Do I need a GPU?", "Do I need a graphics card?", "Does Olympus need a GPU?", "Can I use Olympus without a GPU?",
         "Is a GPU needed?", "Do you need a GPU?", "Will it run without a GPU?", "Must I have a GPU?"),
    ),
}
NOUN_TEMPLATES = (
    "What is {x}?", "What is {x} in Olympus?", "What does {x} do?", "Explain {x}.", "Tell me about {x}.",
    "Can you explain what {x} is?", "What do you mean by {x}?", "{x}?", "Please explain {x}.", "Describe {x}.",
    "What is {x} for?", "I do not understand {x}.", "What's {x}?", "Do you know what {x} is?", "And what is {x}?",
    "Tell me what {x} is.", "Could you tell me about {x}?", "What exactly is {x}?", "What about {x}?",
    "I want to know what {x} is.", "Can you tell me what {x} is?", "How would you describe {x}?",
)
QUESTION_OPENERS = (
    "", "", "", "Please tell me: ", "Quick question: ", "I would like to know: ", "And one more thing. ", "Tell me. ",
    "Hello! ", "I am new here. ", "So ", "OK. ", "Sorry, ",
)

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in (
        "hot/cold big/small tall/short fast/slow happy/sad day/night up/down left/right open/closed full/empty "
        "light/dark young/old rich/poor hard/soft wet/dry clean/dirty early/late high/low near/far first/last "
        "good/bad true/false strong/weak thick/thin wide/narrow deep/shallow sweet/sour loud/quiet modern/ancient "
        "safe/dangerous inside/outside above/below before/after always/never love/hate win/lose buy/sell push/pull "
        "begin/end give/take remember/forget arrive/leave brave/afraid sharp/blunt smooth/rough "
        "cheap/expensive easy/difficult alive/dead awake/asleep north/south east/west black/white summer/winter "
        "yes/no friend/enemy question/answer"
    ).split()
)
OPPOSITE_TEMPLATES = (
    "Opposite of {x}?", "What is the opposite of {x}?", "The opposite of {x}?", "Opposite: {x}",
    "Tell me the opposite of {x}.", "Name the opposite of {x}.", "What's the opposite of {x}?",
    "Give me the opposite of {x}.", "Do you know the opposite of {x}?", "Which word is the opposite of {x}?",
)

CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Ireland": "Dublin", "Iceland": "Reykjavik",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Peru": "Lima", "Chile": "Santiago",
}
OTHER_COUNTRIES = (
    "Bolivia Ghana Nepal Fiji Cuba Laos Mali Oman Qatar Chad Togo Ukraine Romania Vietnam Jordan Uruguay Ecuador "
    "Belgium Croatia Estonia Malta Panama Jamaica Mongolia Zambia Rwanda Tunisia Atlantis Narnia Brazil Turkey Iran"
).split()
CAPITAL_TEMPLATES = (
    "What is the capital of {x}?", "Capital of {x}?", "Capital: {x}", "Tell me the capital of {x}.",
    "What's the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}.",
    "Do you know the capital of {x}?", "The capital of {x}?", "What is {x}'s capital?",
)

NAMES = (
    "Ada Alan Grace Linus Maria Omar Priya Chen Yuki Ivan Olga Lucas Emma Noah Mia Liam Zoe Hugo Nina Otto Paul Rosa "
    "Sara Tom Uma Vera Will Xena Yara Zack Anna Ben Clara David Eva Felix Gina Henry Iris Jack Kate Leo Mona Nora "
    "Oscar Peter Quinn Rita Sam Tina Ugo Victor Wendy Aisha Bao Carlos Dmitri Elena Farid Goran Hana Ines Jorge Karim "
    "Lena Mateo Nadia Olav Pablo Rania Stefan Tariq Ursula Viktor Walter Yusuf Zainab Amelia Boris Cecilia Dennis "
    "Edith Frank Gloria Hannah Igor Jane Kevin Laura Martin Natalie Oliver Petra Robert Sophie Thomas Valerie "
    "Bartholomew Josephine Christina Alexander Benjamin Charlotte Dominic Elizabeth Frederick Gabriel"
).split()
COLOURS = (
    "blue red green yellow orange purple pink brown black white grey violet teal silver gold crimson turquoise indigo "
    "beige scarlet magenta lime olive navy amber coral"
).split()
FOODS = (
    "pizza pasta soup bread rice cheese apples bananas curry salad noodles pancakes chocolate honey olives mushrooms "
    "tomatoes potatoes dumplings sushi tacos porridge waffles lentils cherries strawberries"
).split()
ANIMALS = (
    "fox owl cat dog wolf bear hare hedgehog badger otter eagle raven goat sheep horse donkey mouse rabbit squirrel "
    "turtle dolphin whale penguin tiger lion elephant giraffe zebra camel monkey parrot swan duck goose hen frog toad "
    "lizard snake dragon unicorn robot giant wizard pirate sailor baker farmer king queen princess knight boy girl "
    "ant bee spider octopus crab snail kitten puppy pony moose beaver falcon heron"
).split()
CITIES = (
    "Oslo Paris London Berlin Lima Cairo Tokyo Athens Rome Madrid Boston Chicago Toronto Sydney Mumbai Lagos Nairobi "
    "Manila Seoul Hanoi Dublin Prague Geneva Hamburg Porto Naples Bergen Leeds Quito Denver"
).split()
JOBS = (
    "teacher nurse baker farmer pilot painter doctor plumber writer singer driver gardener carpenter engineer student "
    "lawyer chemist librarian tailor fisherman"
).split()
HOBBIES = (
    "chess reading swimming cooking painting hiking sailing running dancing singing gardening fishing cycling knitting "
    "climbing skiing photography astronomy"
).split()
NOUNS = (
    "river table window garden mountain candle pencil basket bridge button camera carpet castle circle cloud copper "
    "corner cotton desert dinner engine feather finger flower forest guitar hammer island jacket jungle kettle kitchen "
    "ladder lemon letter magnet market mirror needle ocean orange paper pepper pillow planet pocket rocket saddle "
    "shadow silver spring station stone street summer temple thunder ticket tower train tunnel valley velvet village "
    "violin wagon water whistle winter yellow zipper anchor apple arrow autumn ball bell bench bird blanket boat book "
    "bottle bowl box branch brick brush cake card cave chain chair chalk clock coat coin cook corn cow crown cup desk "
    "door dream dress drum dust ear earth egg eye face farm fence field fire fish flag floor fork frost fruit game gate "
    "gift glass glove grass hand harbor hat heart hill home honey house ice ink iron jar jewel juice key kite knife "
    "knot lake lamp leaf leg lion lock map mask meadow milk moon moss mouth nail nest net night nose nut oak oil oven "
    "page paint park path peach pear pen piano pie pipe plate plum pond pot queen rain ring road roof root rope rose "
    "sail salt sand school seed shell ship shirt shoe shop sky smoke snow soap sock song soup spoon star steam storm "
    "sugar sun sword tail tea tent thread tiger toast tooth town toy tree truck turnip umbrella vase wall wheel wind "
    "wing wolf wood wool yard zebra almond bamboo cactus dagger elbow fabric ginger helmet insect jigsaw kernel lantern "
    "marble napkin onion parade quartz ribbon saucer teapot urchin walnut yogurt acorn blossom compass diamond emerald "
    "fountain goblet horizon icicle journey kingdom lavender monument notebook orchard pumpkin quarry rainbow sandwich "
    "treasure universe vineyard waterfall xylophone yesterday avalanche butterfly chocolate dandelion elevator"
).split()
ADJECTIVES = (
    "red blue tiny brave clever lazy hungry silver golden quiet noisy gentle curious happy sleepy old young shy proud "
    "lonely cheerful green purple sneaky funny wise"
).split()
VERBS = (
    "paint repair build cook clean draw buy sell find open wash plant bake climb photograph translate record print "
    "measure borrow fix carry design grow move"
).split()

# Keys of facts about the user, with the list their values usually come from.
FACT_KEYS: dict[str, str] = {
    "name": "names", "favourite colour": "colours", "favourite food": "foods", "favourite animal": "animals",
    "city": "cities", "job": "jobs", "hobby": "hobbies", "pet": "animals", "favourite number": "numbers",
    "favourite song": "nouns", "favourite book": "nouns", "favourite city": "cities", "favourite drink": "foods",
    "lucky number": "numbers", "age": "numbers", "best friend": "names", "cat": "names", "dog": "names",
    "sister": "names", "brother": "names", "team": "nouns", "car": "colours", "country": "countries",
    "favourite sport": "hobbies", "favourite word": "nouns", "language": "nouns", "project": "nouns",
    "favorite color": "colours", "favorite food": "foods", "favourite season": "nouns", "favourite game": "hobbies",
    "teacher": "names", "street": "nouns", "favourite editor": "nouns", "password hint": "nouns", "dream": "hobbies",
}
TELL_TEMPLATES = (
    "My {k} is {v}.", "My {k} is {v}.", "My {k} is {v}", "Remember: my {k} is {v}.", "Please remember that my {k} is {v}.",
    "Remember that my {k} is {v}.", "By the way, my {k} is {v}.", "You should know that my {k} is {v}.", "Hello, my {k} is {v}.",
    "Note that my {k} is {v}.", "Hi! My {k} is {v}.",
)
TELL_NAME_TEMPLATES = ("I am {v}.", "Call me {v}.", "I am called {v}.", "You can call me {v}.", "They call me {v}.")
ASK_TEMPLATES = (
    "What is my {k}?", "What is my {k}?", "What's my {k}?", "Do you know my {k}?", "Tell me my {k}.", "And what is my {k}?",
    "Do you remember my {k}?", "Can you tell me my {k}?", "What was my {k}?", "So what is my {k}?", "My {k}?",
)
ASK_NAME_TEMPLATES = ("Who am I?", "What am I called?", "Do you know who I am?")
ASK_CITY_TEMPLATES = ("Where do I live?", "In which city do I live?")
ASK_ALL_TEMPLATES = (
    "What do you know about me?", "What do you remember about me?", "Tell me what you know about me.",
    "Which facts do you know about me?", "Do you know anything about me?", "What have I told you?",
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are the Olympus demo model.", "You are a helpful, honest assistant.",
    "Answer briefly.", "Be friendly and short.", "You are Olympus.", "Answer the user.", "You are a chat model.",
    "You are the Olympus demo assistant. Answer in one sentence.", "Be concise.",
)
FACTS_HEADING = "Known facts about the user:"

# Questions out of its reach. {n} noun, {p} another noun, {a} animal, {c} city, {j} adjective, {v} verb, {m} name, {d} number.
OUT_OF_SCOPE = (
    "What is the weather in {c}?", "How is the weather today?", "Will it rain tomorrow?", "Write a poem about {n}.",
    "Write a song about a {n}.", "Tell me a joke.", "Tell me a joke about a {a}.", "What is a {n}?", "What is the {n}?",
    "Explain {n}.", "How do I {v} a {n}?", "How can I {v} the {n}?", "Where can I {v} a {n}?", "Who invented the {n}?",
    "Who won the game yesterday?", "What is the meaning of life?", "How old is {m}?", "Who is {m}?", "Who was {m}?",
    "Translate {n} to French.", "Translate this to German: {n}", "What time is it?", "What day is it today?",
    "How far is it from {c} to the moon?", "How many {a}s live in {c}?", "Why is the {n} {j}?", "Why is the sky blue?",
    "Is a {n} {j}?", "Which {n} is the best?", "Give me a recipe for {n}.", "How do I cook {n}?", "Can you {v} my {n}?",
    "Write a program that can {v} a {n}.", "Write a Python function.", "Fix this code.", "Summarize this text.",
    "What do you think about {n}?", "Do you like {n}?", "Do you like me?", "Can a {a} eat a {n}?", "Sing a song.",
    "What is {d} times {d}?", "What is {d} minus {d}?", "What is {d} divided by {d}?", "What is {d} * {d}?",
    "What is {d} - {d}?", "What is the square root of {d}?", "How many days are in a year?", "Plan a trip to {c}.",
    "Where is {c}?", "How big is {c}?", "How many people live in {c}?", "Should I {v} a {n}?", "I like my {n}.",
    "The {n} is {j}.", "My {a} ate the {n}.", "I have a {j} {n}.", "Let us {v} a {n}.", "Draw a {n}.", "Draw me a {j} {a}.",
    "What colour is a {n}?", "How heavy is a {a}?", "When was the {n} made?", "When was {m} born?", "Is {m} in {c}?",
    "Buy me a {n}.", "Play some music.", "Open the {n}.", "Turn on the {n}.", "Make me a {n}.", "What rhymes with {n}?",
    "Compare a {n} and a {p}.", "What is the difference between a {n} and a {p}?", "Give me a list of {a}s.",
    "How do {a}s sleep?", "Why do {a}s like {n}?", "Where do {a}s live?", "What do {a}s eat?", "Are you happy?",
    "Can you think?", "Can you see me?", "Are you alive?", "What is love?", "{n} {p}", "{n}", "{n} and {p}", "{n}?",
    "{j} {n} {p} {a}", "Reverse: {n}", "How many letters are in {n}?", "Count the letters in {n}.", "Lowercase: {n}",
    "Sort: {n} {p}", "What is the plural of {n}?", "Who is the president of {c}?", "Send a mail to {m}.", "Call {m}.",
    "Give me advice.", "Make a plan for a {j} {n}.", "Explain how to {v} a {n}.", "Is {d} a prime number?",
    "Convert {d} to binary.", "Tell me a secret.", "Tell me a riddle about a {n}.", "Tell me something about {c}.",
    "Tell me about {n}.", "What is the population of {c}?", "What is the history of {c}?", "Good or bad?", "I am {j}.",
    "I do not like the {n}.", "You are {j}.", "You are wrong.", "That is not right.", "Why?", "Why not?", "Really?",
    "What does {n} mean?", "Define {n}.", "How does a {n} work?", "What is inside a {n}?", "Show me a picture of a {a}.",
    "Who wrote the {n}?", "Which is better, {n} or {p}?", "Is it {j}?", "Please {v} the {n} and the {p}.", "abc", "test",
    "asdf", "...", "?", "ok", "yes", "no", "Go on.", "More", "Again", "foo bar", "1234", "{d}", "{d} {d} {d}",
)
# Never seen in training: how well "I cannot answer that" carries over to other wordings.
OUT_OF_SCOPE_HELD_OUT = (
    "How long does it take to {v} a {n}?", "Which {n} should I {v} for {m}?", "Is there a {n} in {c}?",
    "Write an essay about the {j} {n}.", "What happened in {c} last year?", "Can you recommend a {n}?",
    "Where did {m} put the {n}?", "What would a {a} say to a {p}?", "Find me a cheap {n} near {c}.",
    "How much does a {n} cost?", "Do {a}s dream of {n}?", "Invent a name for my {a}.", "Who discovered {c}?",
    "What is {d} to the power of {d}?", "Rate my {n}.", "Help me {v} the {j} {n}.",
)
SYLLABLES = (
    "ba be bi bo bu ka ke ki ko ku da de di do du fa fe fi fo ga ge gi go gu ha he hi ho la le li lo lu ma me mi mo mu "
    "na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi wo ya yo za ze zo "
    "tra bre cla dro fle gri pla ste sho chi tha whe qui ster ling ton mar ber den fin gar hol jan kel lan mon nor pel "
    "ran sel tor ven win ing ed er est ly ment ness able ful ous ick ock uck ash ish ost and ent ight ough ell ill oll "
    "all arm orn irt ump ank ink unk ax ex ix oz"
).split()
