"""How weights change: objectives, advantages, packing, the FSDP learner. Needs neither Ray nor vLLM."""
