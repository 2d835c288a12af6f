"""What teachers said, on disk: a second objective on the same rollouts reads it instead of running the teachers again.

A file holds what one call scored of one teacher, as safetensors, written by rename; its index is read when the cache
is opened. A sample is found by the teacher's hash, its token ids with their loss mask, the ids that no policy may write
and the temperature: what decides its scores. Of a support that was stored wider than it is wanted the likeliest are
taken, so that objectives of several k and of several masses share one file; what was stored narrower, or without the
hidden states that an objective needs, is scored again and stored beside it.

Scores that were read are bit by bit those that were stored; those of a sample may differ in their last bits by what was
scored, and so packed, with it.

N positions of a sample, K support, H hidden width.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.train.packing import output_layer
from openhorizon.train.scores import Head, TeacherScores, Wanted, enough, score

SUFFIX = ".safetensors"
INDEX = "samples"  # of a file's metadata: [key, first position] of each, in order
Place = tuple[Path, int, int]  # a file, and a sample's first and last position in it


class ScoreCache:
    """Scores below ``folder``, which any number of processes may read and add to; one sees of the others what was there
    when it was opened.

    Raises:
        ValueError: a file is damaged; the message has its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[int, bool, Place]]] = {}  # key → (K, whether hidden states are there, where)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            self._enter(path)

    def score(
        self,
        models: Sequence[PreTrainedModel],
        teacher: str,
        trajectories: Sequence[Trajectory],
        wanted: Wanted,
        invalid_V: torch.Tensor,
        machine: MachineConfig,
    ) -> list[TeacherScores]:
        """``train.scores.score``, running the teacher on nothing but what is not there. Raises what it does, and
        ``ValueError`` where a file is damaged."""
        keys = [_key(teacher, trajectory, wanted.temperature, invalid_V) for trajectory in trajectories]
        if any(self._found(key, wanted) is None for key in keys):
            missing = [i for i, key in enumerate(keys) if self._found(key, wanted) is None]
            plain = replace(wanted, top_mass=None)  # all of the support: less of it can be had at every reading
            made = score(models, teacher, [trajectories[i] for i in missing], plain, invalid_V, machine)
            self._store([keys[i] for i in missing], made)
        heads = tuple(output_layer(model, machine) for model in models) if wanted.whole else ()
        return self._read(keys, teacher, wanted, heads, models[0].device)

    def _found(self, key: str, wanted: Wanted) -> Place | None:
        fitting = (
            place for k, whole, place in self._places.get(key, ()) if k >= wanted.top_k and whole >= wanted.whole
        )
        return next(fitting, None)

    def _store(self, keys: Sequence[str], scores: Sequence[TeacherScores]) -> None:
        """One file of all of them."""
        starts = np.cumsum([0, *(len(one.written_logprobs_N) for one in scores)]).tolist()
        tensors = {
            "support": torch.cat([one.support_NK for one in scores]).int(),
            "logprobs": torch.cat([one.logprobs_NK for one in scores]),
            "written": torch.cat([one.written_logprobs_N for one in scores]),
        }
        for n in range(len(scores[0].hidden)):
            tensors[f"hidden{n}"] = torch.cat([one.hidden[n] for one in scores])
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        handle, building = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        try:
            samples = json.dumps([*zip(keys, starts[:-1], strict=True)])
            save_file(kept, building, {INDEX: samples})
            path = self.folder / (hashlib.sha256(samples.encode()).hexdigest()[:12] + _kind(kept) + SUFFIX)
            os.chmod(building, 0o644)
            os.replace(building, path)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise
        self._enter(path)

    def _enter(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                positions, support = file.get_slice("support").get_shape()
                whole, samples = "hidden0" in file.keys(), json.loads(file.metadata()[INDEX])  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged scores ({error}); delete the file, it will be scored again") from error
        ends = [start for _, start in samples[1:]] + [positions]
        for (key, start), end in zip(samples, ends, strict=True):
            self._places.setdefault(key, []).append((support, whole, (path, start, end)))

    def _read(
        self, keys: Sequence[str], teacher: str, wanted: Wanted, heads: tuple[Head, ...], device: torch.device
    ) -> list[TeacherScores]:
        files: dict[Path, Mapping[str, torch.Tensor]] = {}
        results: list[TeacherScores] = []
        for key in keys:
            place = self._found(key, wanted)
            assert place is not None
            path, start, end = place
            if path not in files:
                files[path] = _tensors(path, wanted, device)
            mine = {name: tensor[start:end] for name, tensor in files[path].items()}
            hidden = tuple(mine[f"hidden{n}"] for n in range(len(heads)))
            results.append(
                TeacherScores(
                    teacher, mine["support"], mine["logprobs"], mine["tail"], mine["written"], hidden, heads
                )
            )  # fmt: skip
        return results


def _tensors(path: Path, wanted: Wanted, device: torch.device) -> dict[str, torch.Tensor]:
    """A file's, as ``score`` would give them with these wishes."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if wanted.whole or not name.startswith("hidden")]  # noqa: SIM118
        found = {name: file.get_tensor(name).to(device) for name in names}
    # Contiguous, so that a sum over the support adds up in the order in which it would have without the cache.
    found["support"] = found["support"][:, : wanted.top_k].long().contiguous()
    found["logprobs"] = found["logprobs"][:, : wanted.top_k].contiguous()
    if wanted.top_mass is not None:
        found["logprobs"] = enough(found["logprobs"], wanted.top_mass)
    found["tail"] = 1 - found["logprobs"].exp().sum(1)
    return found


def _kind(tensors: Mapping[str, torch.Tensor]) -> str:
    """What else a file's name says, so that a wider support does not take a narrower one's place while it is read."""
    return f"-{tensors['support'].shape[1]}" + ("-whole" if "hidden0" in tensors else "")


def _key(teacher: str, trajectory: Trajectory, temperature: float, invalid_V: torch.Tensor) -> str:
    digest = hashlib.sha256(repr((teacher, temperature)).encode())
    digest.update(np.packbits(invalid_V.cpu().numpy()).tobytes())
    digest.update(np.asarray(trajectory.ids, np.int64).tobytes())
    digest.update(np.packbits(np.asarray(trajectory.loss_mask)).tobytes())
    return digest.hexdigest()
