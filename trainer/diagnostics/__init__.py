"""What an update did to the weights: drift between two sets of them. Needs neither Ray nor vLLM; reads files, writes none."""
