"""Files that are rendered as they are: shell for servers and pods, a router for vLLM, questions to other parsers."""
