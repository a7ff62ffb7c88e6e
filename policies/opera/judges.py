"""Judges of OPERA's consistency reward that read: a local language model, or one behind an OpenAI-compatible endpoint (table 13).

In the environment's configuration a judge is its factory and its arguments:

    judge: policies.opera.judges:local_judge
    judge_options: {model: FOLDER}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ir_env.actions import ActionTable
from ir_env.plan_answer import PlanAnswer
from ir_env.plan_reward import Judge
from policies.remote import ChatEndpoint
from tool_actors.errors import IrEnvError
from tool_actors.extras import need

__all__ = ["SYSTEM", "endpoint_judge", "local_judge", "verdict"]

SYSTEM = """\
You are a rigorous planning problem evaluator. I will provide you with two parts:
A Reasoning Process describing how a planning problem is analyzed and solved
A Final Plan representing the final planning decision or outcome
Your task is to evaluate them according to the following criteria:
1. Evaluate the Reasoning Process
- The reasoning process must NOT be empty
- It must contain meaningful, coherent, and logical reasoning steps
- It should include analysis of constraints, assumptions, or decision logic
- If the reasoning process is missing, empty, superficial, or logically flawed, mark it as unreasonable
2. Check Consistency Between Reasoning Process and Final Plan
- The final plan must be logically derivable from the reasoning process
- There should be no contradictions between the reasoning process and the final plan
- If the reasoning supports one conclusion but the final plan states another, mark them as inconsistent
3. Provide a Clear Judgment and Explanation
Only output a single "Yes" or "No". Do not provide other explanations or text."""


def local_judge(model: str, max_tokens: int = 8, batch: int = 16, device: str = "cpu") -> Judge:
    """A causal language model of transformers.

    Args:
        model: a name on the hub, or the folder of a downloaded one, with a chat template.
        max_tokens: of its verdict; a model that thinks aloud first needs more.
        batch: answers judged at a time.
        device: where it runs.

    Raises:
        IrEnvError: it is not there, or has no chat template.
    """
    need("transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        network = AutoModelForCausalLM.from_pretrained(model).to(device).eval()
    except Exception as error:
        raise IrEnvError(
            f"the judge {model!r} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}); give the folder of a downloaded "
            "language model, or judge: rules"
        ) from error
    if not tokenizer.chat_template:
        raise IrEnvError(f"the judge {model!r} has no chat template: choose a model that was tuned for chat")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def reply(questions: Sequence[str]) -> list[str]:
        texts = [tokenizer.apply_chat_template(_chat(question), tokenize=False, add_generation_prompt=True) for question in questions]
        said = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(texts[start : start + batch], padding=True, return_tensors="pt", add_special_tokens=False).to(device)
            with torch.no_grad():
                tokens = network.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            said += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return said

    return _judge(reply)


def endpoint_judge(url: str, model: str, key_variable: str = "OPENAI_API_KEY", timeout: float = 60.0, retries: int = 3) -> Judge:
    """A chat model behind an OpenAI-compatible endpoint.

    What is not answered is judged inconsistent, and the log says so. The arguments are those of :class:`policies.remote.ChatEndpoint`.
    """
    endpoint = ChatEndpoint(url, model, key_variable, timeout, retries)
    return _judge(lambda questions: [answer or "" for answer in endpoint.ask_all([_chat(question) for question in questions])])


def _judge(reply: Callable[[Sequence[str]], list[str]]) -> Judge:
    """A judge from a function that answers questions; answers without a reasoning are not asked about."""

    def judge(answers: Sequence[PlanAnswer], actions: ActionTable) -> list[bool]:
        asked = [answer for answer in answers if answer.think]
        questions = [f"Reasoning Process: {each.think}\n\nFinal Plan: {[actions[index].tool for index in each.plan]}" for each in asked]
        verdicts = iter([verdict(text) for text in reply(questions)] if questions else [])
        # the index form has no reasoning, and is consistent by definition; an empty one is not
        return [next(verdicts) if answer.think else answer.think is None for answer in answers]

    return judge


def verdict(text: str) -> bool:
    """Whether the last word of a reply is yes: a model may think aloud before it."""
    words = [word.strip("*_`'\".!:,()").lower() for word in text.split()]
    said = [word for word in words if word in ("yes", "no")]
    return bool(said) and said[-1] == "yes"


def _chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
