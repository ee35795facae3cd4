"""Trains the classification branch: a low-rank adapter of the encoder's layers 3 to 5, with a linear head per task.

The layers below the branch are frozen, so their int8 outputs are computed once per text; an epoch then costs
three layers, forward and backward. The heads also read the frozen features (means of the encoder's layers, lexical
features), strongly regularized.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.nn import functional

from enrichment.classify import TASKS, Task
from enrichment.encoder import Floats
from enrichment.export.adapter import ADAPTED, FIRST_LAYER, HIDDEN, LAYERS, PARTS, Adapter
from enrichment.export.corpus import Labelled
from enrichment.export.graph import Array, Graph
from enrichment.export.heads import softmax
from enrichment.features import LexicalFeatures
from enrichment.manifest import PlattScaling
from enrichment.score import Booleans, Doubles
from enrichment.session import make_session

__all__ = [
    "Settings",
    "Trained",
    "TrainingSet",
    "accepted",
    "calibration_for",
    "choose_review",
    "choose_thresholds",
    "prepare",
    "train",
]

_ATTENTION_HEADS: Final = 12
_EPSILON: Final = 1e-12  # of MiniLM's layer normalisation
_SCALE: Final = 2.0  # of the adapter's products, folded into the exported factors
_SIDE_SCALE: Final = 1 / math.sqrt(10)  # of the standardised frozen features
_TOKENS: Final = 1024  # of a batch
_GRID: Final = 12  # thresholds tried per task

Integers = npt.NDArray[np.int_]


@dataclass(frozen=True)
class Settings:
    """How the branch is trained; written into the recipe.

    `mix` says how an epoch is drawn from each source: a number up to 10 repeats all of it, a larger one is a sample.
    """

    rank: int = 16
    epochs: int = 2
    adapter_rate: float = 1e-3
    head_rate: float = 2e-3
    side_rate: float = 3e-4
    head_decay: float = 0.05
    side_decay: float = 1.0
    dropout: float = 0.15
    first_label: float = 0.7  # share of the loss for the first label; the rest for the probability of all accepted ones
    mix: Mapping[str, int] = field(
        default_factory=lambda: {
            "public": 2,
            "own": 1,
            "opinions": 2,
            "banking77": 2500,
            "sst2": 1,
            "senti4sd": 500,
        }
    )


@dataclass(frozen=True)
class TrainingSet:
    """Texts with their sources, and what the frozen part of the encoder says of them.

    states[i] (tokens, 384) in half precision: the output of layer 2. side (texts, features): pooled, then lexical.
    targets per task (texts, labels): 1 where a label is accepted; first per task: the best label, -1 where unlabelled.
    """

    texts: Sequence[Labelled]
    sources: Sequence[str]
    states: Sequence[Array]
    side: Floats
    labels: Mapping[Task, Sequence[str]]
    targets: Mapping[Task, Floats]
    first: Mapping[Task, Integers]

    def rows(self, source: str) -> list[int]:
        """Indices of the texts of a source."""
        return [i for i, name in enumerate(self.sources) if name == source]


def prepare(
    graph: Graph,
    weights: Path,
    lexical: LexicalFeatures,
    texts: Mapping[str, Sequence[Labelled]],
    labels: Mapping[Task, Sequence[str]],
) -> TrainingSet:
    """Runs the frozen encoder (`graph`, without a branch) over all texts."""
    sources = [source for source, items in texts.items() for _ in items]
    everything = [item for items in texts.values() for item in items]
    states, pooled = _frozen(graph, weights, [item.text for item in everything])
    side = np.concatenate([pooled, np.stack([lexical.features(item.text) for item in everything])], 1)
    targets, first = {}, {}
    for task in TASKS:
        targets[task] = np.zeros((len(everything), len(labels[task])), np.float32)
        first[task] = np.full(len(everything), -1)
        for i, item in enumerate(everything):
            if task in item.labels:
                targets[task][i, [labels[task].index(label) for label in item.labels[task]]] = 1
                first[task][i] = labels[task].index(item.labels[task][0])
    return TrainingSet(everything, sources, states, side, labels, targets, first)


def _frozen(graph: Graph, weights: Path, texts: Sequence[str]) -> tuple[list[Array], Floats]:
    from tokenizers import Tokenizer

    end = [node.output[0] for node in graph.nodes if node.op_type == "LayerNormalization"][2 * FIRST_LAYER]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "tapped",
            graph.inputs,
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (end, "pooled")],
            [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    encodings = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    states: list[Array] = [np.zeros(0)] * len(texts)
    pooled: list[Array] = [np.zeros(0)] * len(texts)
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(model, str(Path(scratch) / "tapped.onnx"))
        session = make_session(Path(scratch) / "tapped.onnx")
        for batch in _batches(range(len(texts)), [len(ids) for ids in encodings]):
            ids = np.zeros((len(batch), max(len(encodings[i]) for i in batch)), np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(encodings[i])] = encodings[i]
                mask[row, : len(encodings[i])] = 1
            hidden, means = session.run([end, "pooled"], {"input_ids": ids, "attention_mask": mask})
            for row, i in enumerate(batch):
                states[i] = hidden[row, : len(encodings[i])].astype(np.float16)
                pooled[i] = means[row]
    return states, np.stack(pooled).astype(np.float32)


def _batches(
    rows: Sequence[int], lengths: Sequence[int], numbers: np.random.Generator | None = None
) -> list[list[int]]:
    """Batches of texts of about equal length; shuffled in chunks of 1,000 texts with `numbers`."""
    order = [*rows] if numbers is None else numbers.permutation(rows).tolist()
    chunk = 1000 if numbers is not None else max(len(order), 1)
    result: list[list[int]] = []
    for begin in range(0, len(order), chunk):
        batch: list[int] = []
        for i in sorted(order[begin : begin + chunk], key=lambda i: lengths[i]):
            if batch and (len(batch) + 1) * lengths[i] > _TOKENS:
                result.append(batch)
                batch = []
            batch.append(i)
        if batch:
            result.append(batch)
    if numbers is not None:
        result = [result[i] for i in numbers.permutation(len(result))]
    return result


class _Adapted(nn.Module):
    """A frozen linear layer plus a trained low-rank product."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", bias.to(dtype))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        base = functional.linear(rows, self.weight, self.bias)
        return base + functional.linear(functional.linear(rows, self.down), self.up) * _SCALE


class _Layer(nn.Module):
    """One BERT layer with adapted products."""

    def __init__(self, state: Mapping[str, torch.Tensor], number: int, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        prefix = f"encoder.layer.{number}"
        self.parts = nn.ModuleDict(
            {
                part: _Adapted(state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"], rank, dtype)
                for part, name in PARTS.items()
            }
        )
        for which, name in (("attention", "attention.output.LayerNorm"), ("output", "output.LayerNorm")):
            for kind in ("weight", "bias"):
                self.register_buffer(f"{which}_{kind}", state[f"{prefix}.{name}.{kind}"].to(dtype))

    def forward(self, rows: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = rows.shape

        def split(part: str) -> torch.Tensor:
            return (
                cast("torch.Tensor", self.parts[part](rows)).view(batch, tokens, _ATTENTION_HEADS, -1).transpose(1, 2)
            )

        # Spelled out, because torch's fused attention took three times as long backwards on a CPU.
        scores = split("q") @ split("k").transpose(-1, -2) * (1 / math.sqrt(HIDDEN / _ATTENTION_HEADS)) + penalty
        mixed = (torch.softmax(scores, -1).to(rows.dtype) @ split("v")).transpose(1, 2).reshape(batch, tokens, HIDDEN)
        rows = self._normal(rows + self.parts["o"](mixed), "attention")
        return self._normal(rows + self.parts["down"](functional.gelu(self.parts["up"](rows))), "output")

    def _normal(self, rows: torch.Tensor, which: str) -> torch.Tensor:
        weight, bias = getattr(self, f"{which}_weight"), getattr(self, f"{which}_bias")
        return functional.layer_norm(rows.to(weight.dtype), (HIDDEN,), weight, bias, _EPSILON)


class _Branch(nn.Module):
    def __init__(
        self, weights: Path, labels: Mapping[Task, Sequence[str]], side: int, settings: Settings, dtype: torch.dtype
    ) -> None:
        super().__init__()
        from safetensors.torch import load_file

        state = load_file(weights / "model.safetensors")
        self.layers = nn.ModuleList([_Layer(state, FIRST_LAYER + i, settings.rank, dtype) for i in range(LAYERS)])
        self.queries = nn.Parameter(torch.zeros(len(TASKS), HIDDEN))
        self.heads = nn.ModuleDict({task: nn.Linear(2 * HIDDEN, len(labels[task])) for task in TASKS})
        self.side = nn.ModuleDict({task: nn.Linear(side, len(labels[task]), bias=False) for task in TASKS})
        for task in TASKS:
            nn.init.normal_(cast("nn.Linear", self.heads[task]).weight, std=0.02)
            nn.init.zeros_(cast("nn.Linear", self.heads[task]).bias)
            nn.init.zeros_(cast("nn.Linear", self.side[task]).weight)
        self.dropout = settings.dropout

    def forward(self, rows: torch.Tensor, mask: torch.Tensor, side: torch.Tensor) -> dict[Task, torch.Tensor]:
        penalty = torch.zeros(mask.shape, dtype=rows.dtype).masked_fill(~mask, -1e4)[:, None, None, :]
        for layer in self.layers:
            rows = layer(rows, penalty)
        rows = rows.float()
        share = mask.float() / mask.sum(1, keepdim=True)
        mean = (rows * share[..., None]).sum(1)
        attention = (rows @ self.queries.T).masked_fill(~mask[..., None], -1e9).softmax(1)
        means = torch.einsum("btk,bth->bkh", attention, rows)
        drop = self.dropout if self.training else 0.0
        return {
            task: self.heads[task](functional.dropout(torch.cat([mean, means[:, i]], 1) * 2, drop))
            + self.side[task](functional.dropout(side, drop))
            for i, task in enumerate(TASKS)
        }


@dataclass(frozen=True)
class Trained:
    """A trained branch with the standardisation of its side features."""

    branch: _Branch
    mean: Floats
    scale: Floats
    data: TrainingSet
    dtype: torch.dtype

    def logits(self, rows: Sequence[int]) -> dict[Task, Doubles]:
        """Per task (len(rows), labels)."""
        self.branch.eval()
        result = {task: np.zeros((len(rows), len(self.data.labels[task]))) for task in TASKS}
        places = {i: place for place, i in enumerate(rows)}
        with torch.inference_mode():
            for batch in _batches(rows, [len(s) for s in self.data.states]):
                for task, found in self.outputs(batch).items():
                    result[task][[places[i] for i in batch]] = found.float().numpy()
        return result

    def adapter(self) -> Adapter:
        """The adapter's factors, with their scale folded in, rounded to half precision."""
        factors = {}
        for number, layer in enumerate(self.branch.layers):
            for part, adapted in cast("_Layer", layer).parts.items():
                down = cast("_Adapted", adapted).down.detach().numpy().astype(np.float16)
                up = (cast("_Adapted", adapted).up.detach().numpy() * _SCALE).astype(np.float16)
                factors[f"{number}.{part}"] = (down, up)
        return Adapter(factors, self.branch.queries.detach().numpy().astype(np.float16).astype(np.float32))

    def head(self, task: Task) -> tuple[Floats, Floats]:
        """Weights (pooled + adapted + lexical features, labels) and bias of a task."""
        pooled = self.data.side.shape[1] - self._lexical
        linear = cast("nn.Linear", self.branch.heads[task])
        own = linear.weight.detach().numpy().T * 2
        side = cast("nn.Linear", self.branch.side[task]).weight.detach().numpy().T * _SIDE_SCALE
        side = side / self.scale[:, None]
        adapted = np.zeros((ADAPTED, own.shape[1]), np.float32)
        adapted[:HIDDEN] = own[:HIDDEN]
        block = HIDDEN * (1 + TASKS.index(task))
        adapted[block : block + HIDDEN] = own[HIDDEN:]
        bias = linear.bias.detach().numpy() - self.mean @ side
        weights = np.concatenate([side[:pooled], adapted, side[pooled:]])
        return weights.astype(np.float32), bias.astype(np.float32)

    @property
    def _lexical(self) -> int:
        return int(self.data.side.shape[1] % HIDDEN)  # fewer than 384; the pooled layers have 384 each

    def outputs(self, batch: Sequence[int]) -> dict[Task, torch.Tensor]:
        """The branch's logits for some rows, with gradients."""
        states = [self.data.states[i] for i in batch]
        longest = max(map(len, states))
        rows = torch.zeros(len(batch), longest, HIDDEN, dtype=self.dtype)
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        for place, state in enumerate(states):
            rows[place, : len(state)] = torch.from_numpy(state)
            mask[place, : len(state)] = True
        side = torch.from_numpy((self.data.side[batch] - self.mean) / self.scale * np.float32(_SIDE_SCALE))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return cast("dict[Task, torch.Tensor]", self.branch(rows, mask, side))


def train(data: TrainingSet, rows: Sequence[int], weights: Path, settings: Settings, seed: int) -> Trained:
    """Trains on the texts of these rows. Repeatable on one machine, but not from one kind of CPU to another."""
    torch.manual_seed(seed)
    numbers = np.random.default_rng(seed)
    # bfloat16 where the CPU has instructions for it: three times faster, with equal figures.
    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    dtype = torch.bfloat16 if capabilities == "AVX512" and _has_bfloat16() else torch.float32
    mean, scale = data.side[rows].mean(0), data.side[rows].std(0) + np.float32(1e-3)
    branch = _Branch(weights, data.labels, data.side.shape[1], settings, dtype)
    trained = Trained(branch, mean, scale, data, dtype)
    groups: dict[str, dict[str, Any]] = {
        "layers": {"lr": settings.adapter_rate, "weight_decay": 0.01},
        "heads": {"lr": settings.head_rate, "weight_decay": settings.head_decay},
        "side": {"lr": settings.side_rate, "weight_decay": settings.side_decay},
    }
    for name, group in groups.items():
        prefixes = (name, "queries") if name == "heads" else (name,)
        group["params"] = [p for key, p in branch.named_parameters() if key.startswith(prefixes)]
    optimizer = torch.optim.AdamW(groups.values(), betas=(0.9, 0.98))
    rates = [group["lr"] for group in optimizer.param_groups]
    lengths = [len(states) for states in data.states]
    plan = [
        batch
        for _ in range(settings.epochs)
        for batch in _batches(_epoch(data, rows, settings, numbers), lengths, numbers)
    ]
    branch.train()
    for step, batch in enumerate(plan):
        share = min(1.0, (step + 1) / (0.06 * len(plan))) * max(0.02, 1 - step / len(plan))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        loss = _loss(trained.outputs(batch), data, batch, settings.first_label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch ships no types for it
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()
    return trained


def _has_bfloat16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _epoch(data: TrainingSet, rows: Sequence[int], settings: Settings, numbers: np.random.Generator) -> list[int]:
    chosen: list[int] = []
    for source, count in settings.mix.items():
        pool = [i for i in rows if data.sources[i] == source]
        if count <= 10:
            chosen += pool * count
        else:
            chosen += numbers.choice(pool, min(count, len(pool)), replace=False).tolist()
    return chosen


def _loss(
    found: Mapping[Task, torch.Tensor], data: TrainingSet, batch: Sequence[int], first_label: float
) -> torch.Tensor:
    total = torch.zeros(())
    for task, logits in found.items():
        first = torch.from_numpy(data.first[task][batch])
        known = first >= 0
        if not known.any():
            continue
        logs = torch.log_softmax(logits.float()[known], 1)
        allowed = torch.from_numpy(data.targets[task][batch])[known]
        best = logs[torch.arange(len(logs)), first[known]]
        any_of_them = torch.logsumexp(logs + torch.log(allowed + 1e-9), 1)
        total = total - (first_label * best + (1 - first_label) * any_of_them).sum() / len(batch)
    return total


def accepted(data: TrainingSet, task: Task, rows: Sequence[int]) -> Booleans:
    """(len(rows), labels): which labels are accepted."""
    return data.targets[task][rows] > 0


def calibration_for(logits: Doubles, allowed: Booleans) -> PlattScaling:
    """Slope and offset for `enrichment.classify.calibrated`, from logits of held-out texts (texts, labels).

    A temperature is not enough: a ticket with two accepted labels is right more often than its confidence says.
    """
    from scipy.optimize import minimize

    probabilities = softmax(logits)
    right = allowed[np.arange(len(allowed)), logits.argmax(1)]
    confidence = probabilities.max(1).clip(1e-4, 1 - 1e-4)
    log_odds = np.log(confidence / (1 - confidence))

    def loss(values: Array) -> float:
        slope, offset = values
        signed = np.where(right, 1, -1) * (slope * log_odds + offset)
        return float(np.logaddexp(0, -signed).mean() + 1e-3 * ((slope - 1) ** 2 + offset**2))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=[(0.1, 5), (-5, 5)]).x
    return round(float(slope), 4), round(float(offset), 4)


def choose_review(
    confidence: Mapping[Task, Doubles], right: Mapping[Task, Booleans], *, accuracy: float, share: float
) -> float:
    """The product of confidences below which a ticket is marked for review, with the largest margin to both targets.

    Of the tickets that are not marked, at least `accuracy` should have all tasks right, and they should be at least
    `share` of all.
    """
    product = np.prod([*confidence.values()], 0)
    order = np.argsort(-product)
    kept = np.arange(1, len(order) + 1)
    found = np.cumsum(np.logical_and.reduce([*right.values()])[order]) / kept
    margin = np.minimum(found - accuracy, kept / len(order) - share)
    return math.floor(float(product[order[int(margin.argmax())]]) * 1000) / 1000


def choose_thresholds(
    confidence: Mapping[Task, Doubles], right: Mapping[Task, Booleans], *, accuracy: float, share: float
) -> dict[Task, float]:
    """Review thresholds per task: of those on a grid, the ones with the largest margin to both targets.

    Of the tickets whose confidences all reach their thresholds, at least `accuracy` should have all tasks right, and
    they should be at least `share` of all.
    """
    every = np.logical_and.reduce([*right.values()])
    grids = {task: np.round(np.quantile(values, np.linspace(0, 0.5, _GRID)), 3) for task, values in confidence.items()}
    best: tuple[float, dict[Task, float]] | None = None
    for intent in grids["intent"]:
        for urgency in grids["urgency"]:
            for sentiment in grids["sentiment"]:
                chosen: dict[Task, float] = {
                    "intent": float(intent),
                    "urgency": float(urgency),
                    "sentiment": float(sentiment),
                }
                sure = np.logical_and.reduce([confidence[task] >= limit for task, limit in chosen.items()])
                if not sure.any():
                    continue
                margin = min(float(every[sure].mean()) - accuracy, float(sure.mean()) - share)
                if best is None or margin > best[0]:
                    best = (margin, chosen)
    assert best is not None
    return best[1]
