"""What a training computes and holds, from its specification alone: operations, parameters, GPU memory. No torch, no data.

An operation is half of a multiply-accumulate (FLOP = 2 x MAC); matrix products are counted, norms and activations are not.
A training step costs three forward passes (one for the gradient of the inputs, one for that of the weights), a frozen
part one. Texts count at their longest, since a batch is padded to its longest text: the numbers are upper bounds there. Adaptive
transport, whose iterations depend on the tokens, counts as IPOT with the iterations set.

Shapes: S tokens of one side, T of the other, d = width.
"""

from __future__ import annotations

from dataclasses import dataclass

from amif_lib.experiments.rows import RunSpec
from amif_lib.networks.sizes import ModelSpec

ANSWER_TOKENS = 10  # assumed: the longest answer of a batch, [SEP] included
CANDIDATE_TOKENS = 4  # assumed: an average candidate answer, [SEP] included
ANSWERING_BATCH = 16  # questions answered at a time (`predict.predict`)
BLOCK_BYTES, CROSS_BYTES = 34, 14  # 16-bit activations kept per token and channel; see `gpu_memory`
EXTERNAL = ModelSpec(image_size=224)  # the teachers of the field: ViT-B/16 at 224 pixels
EXTERNAL_TEXT = 256  # tokens that their texts are padded to (BiomedCLIP's)


# --- forward passes, multiply-accumulates -------------------------------------------------------------------------


def patches(m: ModelSpec) -> int:
    return (m.image_size // m.patch_size) ** 2


def block(d: int, s: int, t: int = 0) -> int:
    """A transformer block over S tokens that, where T is given, also cross-attends to T tokens."""
    own = 12 * d * d * s + 2 * s * s * d
    return own + (2 * d * d * (s + t) + 2 * s * t * d if t else 0)


def image_macs(m: ModelSpec) -> int:
    return patches(m) * 3 * m.patch_size**2 * m.width + m.image_layers * block(m.width, patches(m) + 1)


def text_macs(m: ModelSpec, tokens: int) -> int:
    return m.text_layers * block(m.width, tokens)


def pair_macs(m: ModelSpec, s: int, t: int) -> int:
    """Co-attention of a pair with S and T tokens. In the one-way form only the second side goes through the layers."""
    first = 0 if m.co_attention == "one_way" else block(m.width, s, t)
    return m.fusion_layers * (first + block(m.width, t, s))


def projection_macs(m: ModelSpec) -> int:
    return m.width * m.projection_dim + (m.width**2 if m.projection == "mlp" else 0)


def decoder_macs(m: ModelSpec, tokens: int, memory: int, project_memory: bool = True) -> int:
    """The answer decoder over `tokens`; the memory's keys and values may be there already."""
    d = m.width
    own = m.decoder_layers * block(d, tokens) + tokens * (d * d + d * m.vocab_size)
    cross = 2 * d * d * (tokens + (memory if project_memory else 0)) + 2 * tokens * memory * d
    return own + m.decoder_cross_layers * cross


def knowledge_tokens(run: RunSpec, distinct_answers: int | None = None) -> int:
    """Length of the knowledge: its limit, or `CANDIDATE_TOKENS` per distinct training answer where that is less; 0 without."""
    k = run.knowledge
    if k.source == "none":
        return 0
    limit = k.max_tokens if k.positions == "per_answer" else min(k.max_tokens, run.model.text_positions)
    return min(limit, CANDIDATE_TOKENS * distinct_answers) if distinct_answers and k.source == "answers" else limit


def gated_macs(run: RunSpec, joint: int, knowledge: int) -> tuple[int, int]:
    """The gated module: per question, and once per batch for the knowledge."""
    d, gate = run.model.width, run.knowledge.gate * (2 if run.model.gate_input == "both" else 1)
    each = (2 + gate + 8) * d * d * joint + 2 * joint * knowledge * d
    return (each, block(d, knowledge) + 2 * d * d * knowledge) if knowledge else (0, 0)


@dataclass(frozen=True)
class Passes:
    """What one sample of a pre-training stage passes through: `texts` and `pairs` hold lengths in tokens."""

    images: int
    texts: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    transports: int = 0
    projections: int = 0
    predicted: float = 0.0  # report tokens predicted by masked language modelling


def passes(run: RunSpec) -> Passes:
    """The passes of one study through encoders and co-attention; `objectives/amif.py` is what they follow."""
    o, t, p = run.objective, run.data.text_length, patches(run.model) + 1
    shares = 2 if run.model.projection_sharing == "alignment" else 1
    if run.stage == "stage1":
        copies = int(o.copies_texts)
        return Passes(1 + o.reads_both_views("stage1"), (t,) * (1 + copies), projections=3 * shares + copies)
    mines, contrasts = o.weight_hard_negatives > 0, o.weight_local > 0 and o.local_contrast != "positives"
    kinds = o.pair_types if mines else ()
    positives = {"per_type": kinds, "image_text": ("image_text",), "none": ()}[o.pair_positives]
    texts, pairs = [t], []
    if ("image_text" in kinds and o.pair_positives != "none") or (o.weight_local > 0 and o.transport_on == "fused"):
        pairs.append((p, t))
    if "image_text" in kinds or contrasts:
        pairs.append((p, t))
    if "image_text" in kinds and o.negative_directions == "both":
        pairs.append((p, t))
    if "image_image" in kinds:
        pairs += [(p, p)] * (1 + ("image_image" in positives))
    if "text_text" in kinds:
        side = t // 2 if o.text_positive == "halves" else t
        texts += {"halves": [side, side], "copy": [t], "shuffled": [t]}.get(o.text_positive, [])
        pairs += [(side, side)] * (1 + ("text_text" in positives and o.text_positive != "none"))
    if o.weight_global > 0 and o.copies_texts:
        texts.append(t)
    predicted = o.mlm_probability * t if o.weight_mlm > 0 else 0.0
    if predicted:
        texts.append(t)
        pairs.append((p, t))
    return Passes(
        1 + o.reads_both_views("stage2"),
        tuple(texts),
        tuple(pairs),
        transports=(o.weight_local > 0) * (1 + contrasts),
        projections=3 * shares if o.weight_global > 0 else 0,
        predicted=predicted,
    )


# --- operations ----------------------------------------------------------------------------------------------------


def sample_flop(run: RunSpec, distinct_answers: int | None = None, answer_tokens: int = ANSWER_TOKENS) -> float:
    """Operations of one training sample, forward and backward: a study of stage 1 or 2, a question of a fine-tuning."""
    m = run.model
    if run.stage == "finetune":
        each, batch = question_macs(run, run.data.blank_images, distinct_answers)
        joint = patches(m) + 1 + run.data.question_length
        answer = decoder_macs(m, min(answer_tokens, run.data.answer_length), joint)
        return 6.0 * (each + batch / run.train.batch_size + answer)
    o, found = run.objective, passes(run)
    encoders = found.images * image_macs(m) + sum(text_macs(m, t) for t in found.texts)
    fused = sum(pair_macs(m, s, t) for s, t in found.pairs) + found.projections * projection_macs(m)
    fused += found.predicted * (m.width**2 + m.width * m.vocab_size)
    cells = patches(m) * run.data.text_length * found.transports
    plan = 0 if o.transport_solver == "exact" else 2 * cells * o.transport_iterations
    times = 1 if run.stage == "stage2" and o.stage2_trains == "fusion" else 3
    unrolled = 3 if o.plan_gradient == "unrolled" else 1
    total = times * encoders + 3 * (fused + cells * m.width) + unrolled * plan
    if run.teacher is not None and run.teacher.views == "augmented":
        total += 2 * teacher_macs(run)[0]
    return 2.0 * total


def question_macs(run: RunSpec, blank: bool, distinct_answers: int | None = None) -> tuple[int, int]:
    """From image and question to F': per question, and per batch. A blank image is encoded once for the whole batch."""
    m, t, p = run.model, run.data.question_length, patches(run.model) + 1
    gated, knowledge = gated_macs(run, p + t, knowledge_tokens(run, distinct_answers))
    each = text_macs(m, t) + pair_macs(m, p, t) + gated
    return (each, knowledge + image_macs(m)) if blank else (each + image_macs(m), knowledge)


def ranking_flop(run: RunSpec, candidates: int, tokens: int = CANDIDATE_TOKENS) -> float:
    """Operations of ranking `candidates` answers for one question, the memory's keys and values projected once."""
    m, joint = run.model, patches(run.model) + 1 + run.data.question_length
    shared = m.decoder_cross_layers * 2 * m.width**2 * joint
    return 2.0 * (shared + candidates * decoder_macs(m, tokens, joint, project_memory=False))


def evaluation_flop(run: RunSpec, candidates: int, distinct_answers: int | None = None) -> float:
    """Operations of answering one test question: encode, rank all candidates, and generate freely, token by token."""
    m, joint = run.model, patches(run.model) + 1 + run.data.question_length
    each, batch = question_macs(run, run.data.blank_images, distinct_answers)
    longest = min(ANSWER_TOKENS, run.data.answer_length)
    generated = sum(decoder_macs(m, length, joint) for length in range(1, longest))
    return 2.0 * (each + batch / ANSWERING_BATCH + generated) + ranking_flop(run, candidates)


def teacher_macs(run: RunSpec) -> tuple[int, int]:
    """The teacher's forward pass of one image and of one text. All external teachers count as ViT-B/16 at 224 pixels."""
    t = run.teacher
    if t.source != "trained":
        return image_macs(EXTERNAL), text_macs(EXTERNAL, EXTERNAL_TEXT)
    own = _trained_teacher(run)
    return image_macs(own), text_macs(own, t.text_length)


def _trained_teacher(run: RunSpec) -> ModelSpec:
    t = run.teacher
    heads = dict.fromkeys(("image_heads", "text_heads", "fusion_heads"), 1)
    sizes = {"width": t.width, "image_size": t.image_size, "patch_size": t.patch_size}
    return ModelSpec(**sizes, **heads, image_layers=t.layers, text_layers=t.layers)


# --- parameters and memory -----------------------------------------------------------------------------------------


def parameters(run: RunSpec) -> dict[str, int]:
    """Parameters by part of what a run trains and stores."""
    m, d = run.model, run.model.width
    attention, forward = 4 * d * d + 6 * d, 8 * d * d + 7 * d  # each with its layer norm
    streams = 1 + (m.co_attention == "two_stream") + 2 * (m.same_modality_pairs == "separate")
    out = {
        "image_encoder": (3 * m.patch_size**2 + patches(m) + 1 + 1 + 4) * d + m.image_layers * (attention + forward),
        "text_encoder": (m.vocab_size + m.text_positions + 4) * d + m.text_layers * (attention + forward),
        "co_attention": streams * m.fusion_layers * (2 * attention + forward) + 3 * d,
    }
    if run.stage != "finetune":
        hidden = d * d + d if m.projection == "mlp" else 0
        projections = 4 if m.projection_sharing == "alignment" else 2
        out["projections"] = projections * (hidden + d * m.projection_dim + m.projection_dim)
        return out
    if run.knowledge.source != "none":
        gate = (2 if m.gate_input == "both" else 1) * d * d + d
        out["gated_cross_attention"] = 2 * attention + 2 * forward + gate
    untied = m.vocab_size * d if m.decoder_output == "untied" else 0
    layers = m.decoder_layers * (attention + forward) + m.decoder_cross_layers * attention
    out["decoder"] = (m.vocab_size + m.text_positions + 4) * d + layers + d * d + 3 * d + m.vocab_size + untied
    return out


def gpu_memory(run: RunSpec, processes: int = 1, rows_at_once: int = 0) -> float:
    """Peak bytes on each of `processes` GPUs that share a batch: a model, not a measurement.

    Weights, gradients and AdamW's two moments in fp32 (16 bytes per parameter), and activations in 16 bits: 34 bytes per
    token, channel and block where attention maps are not kept (Korthikanti et al. 2022, eq. 2 without its last term), 14
    more for cross-attention; of the decoder also its logits, thrice. Nothing is recomputed to save memory.

    With `rows_at_once` that many rows are (`micro_batch`): of a pre-training's whole batch remain the outputs of encoders
    and co-attention and their gradients, in fp32, and the activations of a few rows of one of these modules.
    """
    m, d = run.model, run.model.width
    p, rows = patches(m) + 1, run.train.batch_size / processes
    few = min(rows_at_once or rows, rows)
    weights = 16.0 * sum(parameters(run).values())
    if run.stage == "finetune":
        t, answer = run.data.question_length, min(ANSWER_TOKENS, run.data.answer_length)
        plain = p * m.image_layers + t * m.text_layers + answer * m.decoder_layers + p + t
        cross = (p + t) * m.fusion_layers
        return weights + few * (d * (BLOCK_BYTES * (plain + cross) + CROSS_BYTES * cross) + answer * m.vocab_size * 12)
    found = passes(run)
    sides = [t if m.co_attention == "one_way" else s + t for s, t in found.pairs]
    logits = found.predicted * m.vocab_size * 12
    modules = [  # activations of one row in each
        (found.images * p * m.image_layers * BLOCK_BYTES, found.images),
        (sum(found.texts) * m.text_layers * BLOCK_BYTES, len(found.texts)),
        (sum(sides) * m.fusion_layers * (BLOCK_BYTES + CROSS_BYTES), len(sides)),
    ]
    if few == rows:
        return weights + rows * (d * sum(kept for kept, _ in modules) + logits)
    outputs = 8 * d * (found.images * p + sum(found.texts) + sum(sides))
    return weights + rows * (outputs + logits) + few * d * max(kept / max(1, calls) for kept, calls in modules)
