"""Output layers that are cut over ranks; each function runs on every rank and returns plain values."""

from collections.abc import Callable
from typing import Any

import trainer_values as values

Rendezvous = Callable[[], str]


def cut_logprobs(rank: int, rendezvous: Rendezvous, sizes: list[int], temperature: float) -> dict[str, Any]:
    """Log-probabilities, entropies and gradients, from logits that are cut over ranks in uneven parts."""
    import torch
    import torch.distributed as dist

    from hybridrl.trainer.logprob import logprob_and_entropy

    dist.init_process_group("gloo", init_method=rendezvous(), rank=rank, world_size=len(sizes))
    everyone = dist.group.WORLD
    assert everyone is not None
    logits_RV, target_R, weight_R = values.make_logits(sum(sizes))
    part = logits_RV.split(sizes, dim=1)[rank].clone().requires_grad_()
    logp_R, entropy_R = logprob_and_entropy(
        part, target_R, first=sum(sizes[:rank]), temperature=temperature, group=everyone
    )
    sums = (logp_R @ weight_R, entropy_R @ weight_R, logp_R @ weight_R + entropy_R.square().sum())
    grads = [torch.autograd.grad(s, part, retain_graph=True)[0].numpy() for s in sums]
    return {"logp": logp_R.detach().numpy(), "entropy": entropy_R.detach().numpy(), "grads": grads}


def sharded_linear_logprobs(
    rank: int,
    rendezvous: Rendezvous,
    sizes: list[int],
    padding: int,
    temperature: float,
    chunk: int,
    soft_cap: float | None,
    banned: tuple[int, ...] = (),
) -> dict[str, Any]:
    """As cut_logprobs, from hidden states and an output layer whose rows are cut over ranks."""
    import torch
    import torch.distributed as dist

    from hybridrl.trainer.linear_logprob import Shard, linear_logprob

    dist.init_process_group("gloo", init_method=rendezvous(), rank=rank, world_size=len(sizes))
    everyone = dist.group.WORLD
    assert everyone is not None
    hidden_RH, weight_VH, target_R, weight_R = values.make_output_layer(sum(sizes))
    own_VH = weight_VH.split(sizes)[rank]
    part = torch.cat([own_VH, torch.full((padding, own_VH.shape[1]), 9.0)]).requires_grad_()
    hidden_RH.requires_grad_()
    shard = Shard(
        first=sum(sizes[:rank]),
        num_entries=sizes[rank],
        group=everyone,
        soft_cap=soft_cap,
        banned=banned,
    )
    logp_R, entropy_R = linear_logprob(hidden_RH, part, target_R, shard, temperature=temperature, chunk=chunk)
    sums = (logp_R @ weight_R, entropy_R @ weight_R, logp_R @ weight_R + entropy_R.square().sum())
    grads = [torch.autograd.grad(s, (hidden_RH, part), retain_graph=True) for s in sums]
    return {
        "logp": logp_R.detach().numpy(),
        "entropy": entropy_R.detach().numpy(),
        "grads": [(of_hidden.numpy(), of_part.numpy()) for of_hidden, of_part in grads],
    }


def sharded_head_gaps(
    rank: int,
    rendezvous: Rendezvous,
    sizes: list[int],
    padding: int,
    temperature: float,
    soft_cap: float | None,
    heads: list[list[int]],
    banned: list[int],
) -> dict[str, Any]:
    """Log-probabilities of a head over those of the targets, and gradients, from an output layer as above."""
    import torch
    import torch.distributed as dist

    from hybridrl.trainer import head_logprob
    from hybridrl.trainer.linear_logprob import Shard

    dist.init_process_group("gloo", init_method=rendezvous(), rank=rank, world_size=len(sizes))
    everyone = dist.group.WORLD
    assert everyone is not None
    head_logprob._VALUES_AT_ONCE = 40  # several parts
    hidden_RH, weight_VH, target_R, weight_R = values.make_output_layer(sum(sizes))
    own_VH = weight_VH.split(sizes)[rank]
    part = torch.cat([own_VH, torch.full((padding, own_VH.shape[1]), 9.0)]).requires_grad_()
    hidden_RH.requires_grad_()
    shard = Shard(
        first=sum(sizes[:rank]), num_entries=sizes[rank], group=everyone, soft_cap=soft_cap, banned=banned
    )
    gap_RK = head_logprob.head_gaps(
        hidden_RH, part, target_R, torch.tensor(heads), shard, temperature=temperature
    )
    grads = torch.autograd.grad((gap_RK.square().sum(1) @ weight_R), (hidden_RH, part))
    head_logprob.LOGITS_AT_ONCE = 4 * len(hidden_RH)  # several parts
    likeliest = [head_logprob.likeliest(hidden_RH, part, count, shard) for count in (1, 4, sum(sizes))]
    return {
        "gaps": gap_RK.detach().numpy(),
        "grads": [grad.numpy() for grad in grads],
        "likeliest": [token_RC.tolist() for token_RC in likeliest],
    }
