"""Walks SAM 2 through a volume, slice by slice.

sam2's own video predictor keeps every frame's output for ever and wants all frames in memory. Here it is fed lazily
and everything it will never read again is dropped after each slice; its results are the same to the last bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from etsam_zarr.config import Precision
from etsam_zarr.geometry import Span
from etsam_zarr.sam.encode_ahead import EncodedAhead, Features
from etsam_zarr.sam.encode_pairs import EQUAL_IN_PAIRS, MOST_PIXELS, EncodedPairs
from etsam_zarr.sam.frames import Frames, TimedFrames
from etsam_zarr.sam.predictor import Predictor, fed_by, without_bars
from etsam_zarr.sam.walk_state import Tensors, packed, unpacked

MEMBRANE = 1
"""The object id under which the membranes are tracked."""


@dataclass(frozen=True)
class SliceOutput:
    """What the model says about one slice."""

    z: int
    native: torch.Tensor
    """Logits at a quarter of the image size, float32, shape (native, native), on the CPU."""
    full: torch.Tensor
    """Logits at the slice's own size, float32, shape (height, width), on the CPU."""
    object_score: float
    """Logit of "there is an object in this slice"."""
    object_pointer: torch.Tensor
    """Float32, shape (hidden dim,), on the CPU."""


class Propagation:
    """SAM 2's walk through one volume (or tile): prompts first, then slice after slice, in order.

    Parameters
    ----------
    predictor
        As :func:`build_predictor` makes it. Nothing of a walk is kept in it.
    frames
        The slices; ``len(frames)`` must be the full depth even if only a part is walked.
    height, width
        Size of a slice in voxels, to which ``SliceOutput.full`` is brought.
    precision
        ``"bfloat16"`` runs the model under autocast, as ETSAM does on GPUs.
    """

    def __init__(
        self,
        predictor: Predictor,
        frames: Frames,
        *,
        height: int,
        width: int,
        precision: Precision = "float32",
    ) -> None:
        self._predictor = predictor
        self._precision = precision
        self._frames = TimedFrames(frames)
        self._encoded: EncodedAhead | EncodedPairs | None = None
        self.seconds = 0.0
        """Time spent in sam2 so far, without what it waited for frames."""
        with fed_by(predictor, self._frames, height, width):
            self._state = predictor.init_state(video_path=None)
        self._slot = predictor._obj_id_to_idx(self._state, MEMBRANE)

    def prompt(self, z: int, mask: npt.NDArray[np.bool_]) -> None:
        """Give slice ``z`` a prompt mask of shape (height, width) and encode its memory.

        All prompts come before the walk, in the order in which ETSAM gives them.
        """
        with self._computing():
            self._predictor.add_new_mask(self._state, frame_idx=z, obj_id=MEMBRANE, mask=torch.from_numpy(mask))
            # Encoding the memory now, not for all prompts at the start of the walk, finds the image features of this
            # slice still cached; they are the same.
            self._predictor.propagate_in_video_preflight(self._state)
        self._state["mask_inputs_per_obj"][self._slot].clear()

    @property
    def prompted(self) -> tuple[int, ...]:
        """The prompted slices, in the order in which they were prompted."""
        return tuple(self._outputs["cond_frame_outputs"])

    def walk(self, span: Span, on_slice: Callable[[SliceOutput], None]) -> None:
        """Compute the slices of ``span`` in order and hand each to ``on_slice``.

        The walk must go on where the last one (or the restored state) ended.
        """
        steps = self._predictor.propagate_in_video(
            self._state, start_frame_idx=span.start, max_frame_num_to_track=span.size - 1
        )
        for z in range(span.start, span.stop):
            with self._computing(), without_bars() if z == span.start else contextlib.nullcontext():
                self._take_features(z)
                _, _, full = next(steps)
                held = self._output_of(z)
                # Copies to the CPU wait for the device: they belong to the time it takes.
                output = SliceOutput(
                    z=z,
                    native=held["pred_masks"][0, 0].cpu(),
                    full=full[0, 0].cpu(),
                    object_score=float(held["object_score_logits"]),
                    object_pointer=held["obj_ptr"][0].float().cpu(),
                )
            on_slice(output)
            self._forget_before(z + 1)

    @contextlib.contextmanager
    def encoding(self, order: Span, *, ahead: bool) -> Iterator[None]:
        """Within this context exactly the slices of ``order`` are walked: images may be encoded before their turn.

        All prompts are given before; a prompted slice's image is not needed in the walk.

        Parameters
        ----------
        ahead
            Whether each is encoded beside the one before it (:mod:`etsam_zarr.sam.encode_ahead`); else small ones on a
            CPU are encoded in pairs (:mod:`etsam_zarr.sam.encode_pairs`).
        """
        wanted = (z for z in range(order.start, order.stop) if z not in self._outputs["cond_frame_outputs"])
        with contextlib.ExitStack() as stack:
            if ahead:
                self._encoded = stack.enter_context(EncodedAhead(self._features_of, self._frames.frames, wanted))
            elif self._may_pair:
                equal = EQUAL_IN_PAIRS.of(self._predictor)
                self._encoded = EncodedPairs(self._features_of, self._frames.frames, wanted, equal)
            try:
                yield
            finally:
                self._encoded = None

    @property
    def reach(self) -> int:
        """How many neighbouring slices' memories one slice reads."""
        reach: int = self._predictor.num_maskmem - 1
        return reach

    @property
    def horizon(self) -> int:
        """How many slices in a row must be equal for all after them to be equal (given equal prompted slices)."""
        model = self._predictor
        memories: int = max(1, model.memory_temporal_stride_for_eval) * (model.num_maskmem - 1)
        pointers: int = model.max_obj_ptrs_in_encoder - 1
        return max(memories, pointers) + 1

    def predict_backwards(self, z: int) -> torch.Tensor:
        """Predict a prompted slice from the slices after it; native logits, float32, on the CPU.

        A prompted slice's own output is just its prompt. This looks at it as a walk in the reverse direction
        would, and changes nothing in the walk. To be called from ``on_slice`` when the walk has reached slice
        ``z + reach`` (or the last one): the memories of the slices in between are held just then.
        """
        with self._computing():
            output, _ = self._predictor._run_single_frame_inference(
                inference_state=self._state,
                output_dict=self._outputs,
                frame_idx=z,
                batch_size=1,
                is_init_cond_frame=False,
                point_inputs=None,
                mask_inputs=None,
                reverse=True,
                run_mem_encoder=False,
            )
        native: torch.Tensor = output["pred_masks"][0, 0].cpu()
        return native

    def recent_state(self) -> Tensors:
        """Return what the next slices read of the previous ones, to go on later with :meth:`restore`."""
        return packed(self._outputs["non_cond_frame_outputs"])

    def conditioning_state(self) -> Tensors:
        """Return the prompted slices' outputs, in prompting order, which the whole walk reads."""
        constants = self._state["constants"]["maskmem_pos_enc"]
        positions = {f"position_encoding.{level}": value for level, value in enumerate(constants)}
        return {**packed(self._outputs["cond_frame_outputs"], with_masks=True), **positions}

    def restore(self, *, conditioning: Tensors, recent: Tensors) -> None:
        """Continue an earlier walk: take over its state instead of prompting."""
        device = self._state["device"]
        positions = [
            conditioning[f"position_encoding.{level}"].to(device)
            for level in range(sum(name.startswith("position_encoding.") for name in conditioning))
        ]
        self._state["constants"]["maskmem_pos_enc"] = positions
        for key, state in (("cond_frame_outputs", conditioning), ("non_cond_frame_outputs", recent)):
            self._outputs[key].clear()
            self._outputs[key].update(unpacked(state, positions, device))

    @property
    def _may_pair(self) -> bool:
        model = self._predictor
        small = model.image_size**2 <= MOST_PIXELS
        return model.device.type == "cpu" and self._precision == "float32" and small

    def _features_of(self, *frames: torch.Tensor) -> Features:
        """Encode images as sam2 does where it finds none in its cache; in any thread."""
        with self._modes():
            images = torch.stack(frames).to(self._predictor.device).float()
            return images, self._predictor.forward_image(images)

    def _take_features(self, z: int) -> None:
        """Put what was encoded of a slice where sam2 looks for it."""
        if self._encoded is None or z in self._outputs["cond_frame_outputs"]:
            return
        self._state["cached_features"] = {}  # free those of the last slice before waiting
        waited = self._encoded.seconds_waited
        self._state["cached_features"] = {z: self._encoded.take(z)}
        self._frames.seconds += self._encoded.seconds_waited - waited

    @property
    def _outputs(self) -> dict[str, dict[int, dict[str, Any]]]:
        outputs: dict[str, dict[int, dict[str, Any]]] = self._state["output_dict_per_obj"][self._slot]
        return outputs

    def _output_of(self, z: int) -> dict[str, Any]:
        prompted = self._outputs["cond_frame_outputs"]
        return prompted[z] if z in prompted else self._outputs["non_cond_frame_outputs"][z]

    def _forget_before(self, z: int) -> None:
        """Drop all that slice ``z`` and those after it never read.

        SAM 2 reads the memories of the last ``num_maskmem - 1`` slices (further back with a temporal stride) and
        the object pointers of the last ``max_obj_ptrs_in_encoder - 1``; logits of earlier slices never.
        """
        model = self._predictor
        oldest_memory = z - max(1, model.memory_temporal_stride_for_eval) * (model.num_maskmem - 1)
        oldest_pointer = z - (model.max_obj_ptrs_in_encoder - 1)
        recent = self._outputs["non_cond_frame_outputs"]
        for earlier in [key for key in recent if key < min(oldest_memory, oldest_pointer)]:
            del recent[earlier]
        for earlier, output in recent.items():
            output["pred_masks"] = None
            if earlier < oldest_memory:
                output["maskmem_features"] = None
        self._state["frames_tracked_per_obj"][self._slot].clear()

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        begun, waited = time.perf_counter(), self._frames.seconds
        with self._modes():
            yield
        self.seconds += time.perf_counter() - begun - (self._frames.seconds - waited)

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        device = self._predictor.device.type
        with (
            torch.inference_mode(),
            torch.autocast(device, dtype=torch.bfloat16, enabled=self._precision == "bfloat16"),
        ):
            yield
