"""SAM 2 as it is trained: sam2's own modules, walked over a clip.

The package ``sam2`` also installs its training code as the top-level package ``training``. Its model
(``SAM2Train``: prompts drawn from the truth, correction clicks) and losses need ``tensordict`` and
``tensorboard`` but not torchvision, and are used as they are; its data sets and trainer hold whole videos
in memory or need a cluster, and are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate

from etsam_zarr.errors import ModelError, SettingsError
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.training.clips import Clip
from etsam_zarr.training.settings import TrainSettings

try:
    from training.loss_fns import MultiStepMultiMasksAndIous
    from training.model.sam2 import SAM2Train
    from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

    from etsam_zarr.training.losses import Losses, mask_losses
except ModuleNotFoundError as error:  # pragma: no cover - depends on the installation
    raise SettingsError(
        f"Training needs the package {error.name}, which is not installed. Install the extra: pip install "
        "'etsam-zarr[train]'."
    ) from error

_Encoded = tuple[list[torch.Tensor], list[torch.Tensor], list[Any]]
"""Features, their position encodings and sizes, by level, finest first: as sam2's track_step takes them."""

# The gate "there is an object" is held open while training: closed, it puts -1024 in place of every mask
# and no gradient passes. Its logits are trained on their own.
_OPEN_GATE = 10.0
_FAR = 100_000
"""Number of slices that the model is told there are: it only caps how many object pointers are read."""

# SAM2Train's draws for the recipe etsam: mask 0.5, points 0.25, box 0.25; 1 or 2 prompted slices; 7 clicks
# on up to 2.
_ETSAM_PROMPTS = {
    "prob_to_use_pt_input_for_train": 0.5,
    "prob_to_use_box_input_for_train": 0.5,
    "num_frames_to_correct_for_train": 2,
    "rand_frames_to_correct_for_train": True,
    "num_init_cond_frames_for_train": 2,
    "rand_init_cond_frames_for_train": True,
    "add_all_frames_to_correct_as_cond": True,
    "num_correction_pt_per_frame": 7,
    "prob_to_sample_from_gt_for_train": 0.1,
    "num_init_cond_frames_for_eval": 1,
    "forward_backbone_per_frame_for_eval": True,
}


class ClipModel(SAM2Train):  # type: ignore[misc]
    """A SAM 2 model whose forward pass takes a clip and returns losses."""

    train_settings: TrainSettings

    def configure(self, settings: TrainSettings) -> None:
        """Take over the settings; called once after building."""
        self.train_settings = settings
        self._gate_logits = torch.zeros(0)
        self.sam_mask_decoder.register_forward_hook(self._hold_gate_open)
        weights = {
            "loss_mask": settings.focal_weight,
            "loss_dice": settings.dice_weight,
            "loss_iou": settings.iou_weight,
            "loss_class": settings.object_score_weight,
        }
        self.multistep_loss = MultiStepMultiMasksAndIous(
            weights, supervise_all_iou=True, iou_use_l1_loss=True, pred_obj_scores=self.pred_obj_scores
        )

    def forward(self, clip: Clip, *, seed: int) -> Losses:
        """Return the losses of a clip, each a scalar; ``total`` is what to minimise.

        Parameters
        ----------
        clip
            On the model's device.
        seed
            Decides dropout and drawn prompts, so that a resumed training repeats them.
        """
        torch.manual_seed(seed)
        if self.train_settings.recipe == "etsam":
            return self._etsam_losses(clip, seed)
        return self._inference_losses(clip, seed)

    def _etsam_losses(self, clip: Clip, seed: int) -> Losses:
        import numpy as np

        self.rng = np.random.default_rng(seed)
        count, videos = clip.images.shape[:2]
        index = torch.stack(torch.meshgrid(torch.arange(count), torch.arange(videos), indexing="ij"), dim=-1).int()
        datapoint = BatchedVideoDatapoint(
            img_batch=clip.images,
            obj_to_frame_idx=index.to(clip.images.device),
            masks=clip.masks,
            metadata=BatchedVideoMetaData(
                unique_objects_identifier=torch.zeros(count, videos, 3, dtype=torch.long),
                frame_orig_size=torch.zeros(count, videos, 2, dtype=torch.long),
                batch_size=[count],
            ),
            dict_key="clip",
            batch_size=[count],
        )
        outputs = super().forward(datapoint)
        found = self.multistep_loss(outputs, clip.masks)
        names = {"loss_mask": "focal", "loss_dice": "dice", "loss_iou": "iou", "loss_class": "object_score"}
        losses: Losses = {ours: found[theirs] for theirs, ours in names.items()}
        losses["total"] = found["core_loss"]
        return losses

    def _inference_losses(self, clip: Clip, seed: int) -> Losses:
        """Walk a clip as a run does: prompted slices first, then the others in order, each reading memory.

        Slices of the clip's lead give memories only: they are walked without gradients.
        """
        settings = self.train_settings
        prompted = len(clip.prompts)
        learned_from = prompted + clip.lead
        drop_skips = _chance(seed, settings.drop_skips)
        truth_in_memory = _chance(seed + 1, settings.truth_in_memory)
        learning = self._encoded(torch.cat([clip.images[:prompted], clip.images[learned_from:]]), drop_skips=drop_skips)
        with torch.no_grad():
            lead = self._encoded(clip.images[prompted:learned_from], drop_skips=drop_skips) if clip.lead else []
        encoded = [*learning[:prompted], *lead, *learning[prompted:]]
        memory: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        logits: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        ious: list[torch.Tensor] = []
        with self._as_in_a_run():
            for number in range(len(clip.images)):
                is_prompted, learns = number < prompted, not prompted <= number < learned_from
                vision, positions, sizes = encoded[number]
                with contextlib.nullcontext() if learns else torch.no_grad():
                    output = self.track_step(
                        frame_idx=clip.slices[number],
                        is_init_cond_frame=is_prompted,
                        current_vision_feats=vision,
                        current_vision_pos_embeds=positions,
                        feat_sizes=sizes,
                        point_inputs=None,
                        mask_inputs=clip.prompts[number] if is_prompted else None,
                        output_dict=memory,
                        num_frames=_FAR,
                    )
                    if not is_prompted and truth_in_memory:
                        self._remember_truth(output, vision, sizes, clip.masks[number])
                kind = "cond_frame_outputs" if is_prompted else "non_cond_frame_outputs"
                memory[kind][clip.slices[number]] = output
                if number >= learned_from:
                    logits.append(output["multistep_pred_multimasks_high_res"][0])
                    ious.append(output["multistep_pred_ious"][0])
                    scores.append(self._gate_logits)
        truth = clip.masks[learned_from:].flatten(0, 1)
        return mask_losses(torch.cat(logits), torch.cat(ious), torch.cat(scores), truth, settings)

    def _encoded(self, images: torch.Tensor, *, drop_skips: bool) -> list[_Encoded]:
        """Encode images of shape (T, B, 3, S, S) at once; return what each slice's step takes."""
        count, videos = images.shape[:2]
        _, vision, positions, sizes = self._prepare_backbone_features(self.forward_image(images.flatten(0, 1)))
        if len(vision) > 1 and drop_skips:
            vision = [level * 0 for level in vision[:-1]] + [vision[-1]]

        def of(number: int, levels: list[torch.Tensor]) -> list[torch.Tensor]:
            return [level[:, number * videos : (number + 1) * videos] for level in levels]

        return [(of(number, vision), of(number, positions), sizes) for number in range(count)]

    def _remember_truth(
        self, output: dict[str, Any], vision: list[torch.Tensor], sizes: list[Any], truth: torch.Tensor
    ) -> None:
        """Put the truth into the memory that the following slices read, as if it had been predicted."""
        features, positions = self._encode_new_memory(
            current_vision_feats=vision,
            feat_sizes=sizes,
            pred_masks_high_res=truth[:, None].float() * 20 - 10,
            object_score_logits=torch.full((len(truth), 1), _OPEN_GATE, device=truth.device),
            is_mask_from_pts=False,
        )
        output["maskmem_features"], output["maskmem_pos_enc"] = features, positions

    @contextlib.contextmanager
    def _as_in_a_run(self) -> Iterator[None]:
        """Let SAM 2 read memory as it does in a run; layers inside keep their training mode (dropout)."""
        before = bool(self.training)  # type: ignore[has-type]
        self.training = False
        try:
            yield
        finally:
            self.training = before

    def _hold_gate_open(self, _module: object, _inputs: object, output: tuple[torch.Tensor, ...]) -> Any:  # noqa: ANN401
        masks, ious, tokens, object_logits = output
        if self.train_settings.recipe == "etsam":
            return output
        self._gate_logits = object_logits
        return masks, ious, tokens, torch.full_like(object_logits, _OPEN_GATE)


def build_clip_model(config: ModelConfig, settings: TrainSettings) -> ClipModel:
    """Build a model to train, its weights drawn from the settings' seed.

    Raises
    ------
    ModelError
        The configuration cannot be built.
    """
    tree = {**config.tree, "_target_": "etsam_zarr.training.model.ClipModel"}
    tree.pop("non_overlap_masks", None)
    prompts = _ETSAM_PROMPTS if settings.recipe == "etsam" else {}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model: ClipModel = instantiate(tree, **prompts, _recursive_=True)
    except (HydraException, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"The model config {config.name} cannot be built for training: {error}. Compare it with a config of the "
            "sam2 package."
        ) from error
    model.configure(settings)
    return model


def _chance(seed: int, share: float) -> bool:
    generator = torch.Generator().manual_seed(seed)
    return bool(torch.rand((), generator=generator) < share)
