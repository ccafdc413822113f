"""Making models of models: smaller copies of a GGUF file, and GGUF files of safetensors folders."""
