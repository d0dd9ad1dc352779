"""The workers: vLLM's own, with the guard's adapter bound to the runner that they built (``v1/worker``)."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vllm.model_executor.custom_op import op_registry_oot

from guard.errors import GuardError, TapError, UnsupportedError
from guard.ipc.collecting import Part, Site
from guard.ipc.score_table import PATH_VARIABLE, ScoreTable, refusal_file
from guard.ipc.taps import KEY, TapConfig, received
from guard.worker import activations, buffers
from guard.worker.layer import GuardRowParallelLinear, require_taps
from guard.worker.states import attach_blocks, have_built

# vLLM's two model runners, by module; their adapters are imported only where they are.
RUNNER_V1 = "vllm.v1.worker.gpu_model_runner"
RUNNER_V2 = "vllm.v1.worker.gpu.model_runner"


class GuardWorkerMixin:
    """Binds the taps once the model is loaded, and reports on them. ``runners``: the modules of those it may meet."""

    runners: tuple[str, ...] = ()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._load_tapped(*args, **kwargs)
        except GuardError as error:
            # vLLM tells its parent process only that this one failed.
            if (table := _ring_path()) is not None:
                refusal_file(table).write_text(str(error), encoding="utf-8")
            else:
                print(f"hguard: {error}", file=sys.stderr, flush=True)
            raise

    def _load_tapped(self, *args: Any, **kwargs: Any) -> None:
        if op_registry_oot.get("RowParallelLinear") is not GuardRowParallelLinear:
            raise TapError(
                "this worker did not load the guard's plugin, so nothing would be tapped; "
                "VLLM_PLUGINS must name hguard, or be unset"
            )
        config = self.vllm_config  # type: ignore[attr-defined]
        self.hguard_taps = buffers.current(config) or activations.current(config)
        if self.hguard_taps is None:
            raise TapError("this worker was started without a probe: additional_config['hguard'] is missing")
        runner = self.model_runner  # type: ignore[attr-defined]
        built = kind_of(runner)
        if built not in self.runners:
            raise UnsupportedError(
                f"vLLM built the model runner {type(runner).__module__}.{type(runner).__name__}, which the guard does "
                "not tap on this platform; unset VLLM_USE_V2_MODEL_RUNNER, and leave out options that need another"
            )
        have_built(self.hguard_taps)
        adapter = self._adapter(built)
        adapter.prepare(config)
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        require_taps(runner.get_model(), self.hguard_taps.wanted, self.rank)  # type: ignore[attr-defined]
        rank, width = self.rank % self.hguard_taps.ranks, config.model_config.get_hidden_size()  # type: ignore[attr-defined]
        attach_blocks(runner.get_model(), self.hguard_taps, rank, width)
        self.hguard_taps.require_sites()
        self._hguard = adapter(runner, self.hguard_taps, self._table())

    def _table(self) -> ScoreTable | None:
        """The table, for the one rank that writes: each step's scores are summed over all ranks by then.

        Raises TapError where that rank is not on the node of the API, whose memory the table is.
        """
        if self.rank % self.hguard_taps.ranks != 0:  # type: ignore[attr-defined, union-attr]
            return None
        if (path := _ring_path()) is None:
            raise TapError("this node's worker would have to write scores, and the score table is on the API's node")
        return ScoreTable(path)

    @staticmethod
    def _adapter(built: str | None) -> Any:
        if built == RUNNER_V2:
            from guard.worker.runners.v2 import AdapterV2

            return AdapterV2
        from guard.worker.runners.v1 import AdapterV1

        return AdapterV1

    def hguard_report(self) -> dict[str, Any]:
        """What this worker tapped, for the self-test."""
        taps = self.hguard_taps
        assert taps is not None
        runner = kind_of(self.model_runner)  # type: ignore[attr-defined]
        return {
            "tapped": taps.tapped_layers,
            "expected": taps.expected_layers,
            "runner": "V2" if runner == RUNNER_V2 else "V1",
            "probe": self._config().sha256 if isinstance(taps, buffers.Taps) else None,
        }

    def _config(self) -> TapConfig:
        """What is tapped now."""
        found = TapConfig.find(self.vllm_config.additional_config)  # type: ignore[attr-defined]
        assert found is not None
        return found

    def hguard_exchange(self, sha256: str, sent: dict[str, Any]) -> None:
        """Tap another bundle's neurons and heads (``guard.ipc.taps.sendable``), where there is room. The engine does
        nothing else meanwhile, and the bundle's files, which others may have replaced, are not read again."""
        assert isinstance(self.hguard_taps, buffers.Taps)
        config = replace(self._config(), sha256=sha256)
        self.hguard_taps.exchange(config.fitted(received(sent)))
        self.vllm_config.additional_config[KEY] = asdict(config)  # type: ignore[attr-defined]

    def hguard_apart(self, slot: int, generation: int) -> tuple[int, list[list[float]]]:
        """What was told apart of a sequence on this rank: see ``NeuronSums.take``."""
        found: tuple[int, list[list[float]]] = self._hguard.neurons.take(slot, generation)
        return found

    def hguard_count(self, signal: str | None, layer: int | None) -> None:
        """For the self-test: see ``Taps.count_alone``."""
        assert isinstance(self.hguard_taps, buffers.Taps)
        self.hguard_taps.count_alone(signal, layer)

    def hguard_question(self, start: int) -> None:
        """Collecting: the position at which every prompt's question begins."""
        assert isinstance(self.hguard_taps, activations.Collector)
        self.hguard_taps.question_start = start

    def hguard_write(
        self, slots: list[int], rows: list[int], targets: list[tuple[Site, Part, str]]
    ) -> tuple[list[int], list[int]]:
        """Collecting: see ``Collector.write``."""
        assert isinstance(self.hguard_taps, activations.Collector)
        return self.hguard_taps.write(slots, rows, targets)


def _ring_path() -> Path | None:
    """Where the server of this node left the table; None on a node without one."""
    path = os.environ.get(PATH_VARIABLE)
    return None if path is None else Path(path)


def kind_of(runner: Any) -> str | None:
    """The module of the runner that this one is, or inherits from; None for one that we do not know."""
    modules = [base.__module__ for base in type(runner).__mro__]
    return next((kind for kind in (RUNNER_V1, RUNNER_V2) if kind in modules), None)
