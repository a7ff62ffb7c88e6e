"""Other engines that train language models, on our episodes; one file each, which needs the extra of its name.

``chat_episode`` is what they share: an episode as a chat. Environments that need no prompts are in ``ir_env/integrations``.
"""
