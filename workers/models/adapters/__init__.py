"""LoRA adapters of models: which there are, which are in use, which one is the champion."""
