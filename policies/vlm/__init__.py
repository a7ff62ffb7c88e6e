"""The vision-language policy of TIR-Agent: prompts, a strict parser, the model, demonstrations perturbed for exploration."""
