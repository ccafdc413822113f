"""What is learned from: rows on their way in, what they are filtered by, and the datasets frozen of them.

Start reading at curation.py; likeness.py says which rows are about one fact, guards.py which are kept out.
"""
