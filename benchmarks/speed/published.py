"""The published step written plainly, as docs/method.md section 10 describes it, to hold the package's step against.

Attention works in activation space: the student's normed stream is lifted to the teacher's width, the teacher's q, k, v
and o run on it, and what o makes is projected down. The FFN's and both vocabulary matrices are merged anew in each
micro-batch, the embedding over the whole vocabulary. The teacher runs first and keeps a list of its activations, the
student keeps its own, and the clone losses are taken at the end. Logits of both models exist whole, in float32.

Llama and Qwen2 only, with a projection for each reader (`all`); the objective is `PUBLISHED` of
`benchmarks/speed/ways.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


class PublishedStep:
    """A stock teacher and trained tensors by checkpoint name; computes a micro-batch's losses."""

    def __init__(
        self, teacher: nn.Module, trained: dict[str, nn.Parameter], *, temperature: float, alpha: float
    ) -> None:
        self.teacher: Any = teacher
        self.trained = trained
        self.temperature = temperature
        self.alpha = alpha
        self.points: list[Tensor] = []
        """The teacher's activations at the clone points, in the order of the layers."""
        self.is_watching = False
        for layer in self.teacher.model.layers:
            for name in (*READERS[:3], WRITERS[0], *READERS[3:], WRITERS[1]):
                layer.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, arguments: Any, output: Tensor) -> None:
        if self.is_watching:
            self.points.append(output)

    def losses(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute a micro-batch's objective and LM (mean), KL (sum / rows) and clone losses (sum of means)."""
        self.points = []
        self.is_watching = True
        with torch.no_grad():
            teacher_logits = self.teacher(input_ids=input_ids, use_cache=False).logits.float()
        self.is_watching = False
        student_logits, pairs = self._student(input_ids)
        student_logits = student_logits.float()
        lm = F.cross_entropy(student_logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        log_p = F.log_softmax(teacher_logits / self.temperature, -1)
        log_q = F.log_softmax(student_logits / self.temperature, -1)
        per_position = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        kl = (per_position * (labels != -100)).sum() / input_ids.shape[0]
        clone = torch.stack([F.mse_loss(student.float(), teacher.float()) for student, teacher in pairs]).sum()
        return lm + kl + self.alpha * clone, lm, kl, clone

    def _student(self, input_ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run the student; returns its logits and (student, teacher) at every clone point."""
        model = self.teacher.model
        pairs: list[tuple[Tensor, Tensor]] = []
        stream = F.embedding(input_ids, model.embed_tokens.weight @ self._projection("model.embed_tokens"))
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = model.rotary_emb(stream, places)
        for index in range(len(model.layers)):
            stream = stream + self._attention(
                index, self._norm(f"{_layer(index)}.input_layernorm", stream), rotary, pairs
            )
            stream = stream + self._ffn(index, self._norm(f"{_layer(index)}.post_attention_layernorm", stream), pairs)
        head = self._projection("lm_head" if "projections.lm_head" in self.trained else "model.embed_tokens")
        return self._norm("model.norm", stream) @ (self.teacher.lm_head.weight @ head).T, pairs

    def _attention(self, index: int, normed: Tensor, rotary: Any, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        attention = self.teacher.model.layers[index].self_attn
        points = self.points[7 * index : 7 * index + 4]
        made = []
        for name, point in zip(("q_proj", "k_proj", "v_proj"), points[:3], strict=True):
            lifted = normed @ self._projection(f"{_layer(index)}.self_attn.{name}").T
            # `forward`, here and below: the hooks are the teacher's own run's
            made.append(getattr(attention, name).forward(lifted))
            pairs.append((made[-1], point))
        q, k, v = (value.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for value in made)
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out = attention.o_proj.forward(mixed.transpose(1, 2).flatten(2))
        pairs.append((out, points[3]))
        return out @ self._projection(f"{_layer(index)}.self_attn.o_proj")

    def _ffn(self, index: int, normed: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        mlp = self.teacher.model.layers[index].mlp
        prefix, points = f"{_layer(index)}.mlp", self.points[7 * index + 4 : 7 * index + 7]
        gate = F.linear(normed, mlp.gate_proj.weight @ self._projection(f"{prefix}.gate_proj"))
        up = F.linear(normed, mlp.up_proj.weight @ self._projection(f"{prefix}.up_proj"))
        writer = self._projection(f"{prefix}.down_proj")
        out = F.linear(mlp.act_fn(gate) * up, writer.T @ mlp.down_proj.weight)
        pairs += [(gate, points[0]), (up, points[1]), (out, points[2] @ writer)]
        return out

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        x = stream.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.teacher.config.rms_norm_eps)
        return self.trained[f"gains.{name}.weight"].to(stream.dtype) * x.to(stream.dtype)

    def _projection(self, name: str) -> Tensor:
        return self.trained[f"projections.{name}"].to(self.teacher.dtype)


def _layer(index: int) -> str:
    return f"model.layers.{index}"
