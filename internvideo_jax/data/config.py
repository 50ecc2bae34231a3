"""The `data` and `eval_data` parts of a run's config: which clips, and what becomes of them."""

import dataclasses
from typing import Literal

from internvideo_jax.class_names import read_class_names
from internvideo_jax.data.annotations.entries import Format
from internvideo_jax.data.transforms.sampling import Sampling
from internvideo_jax.preprocessing import AudioPreprocessing, Prompt, Resize, TokenizerKind

__all__ = ["Augmentation", "ClipSet", "DataConfig", "MixtureMember", "Sampling"]

# Of all views of a clip: 3.2 GB as they are decoded.
_MAX_PIXELS = 2**30

Augmentation = Literal["pretraining", "finetuning", "random_resized_crop", "none"]


@dataclasses.dataclass(frozen=True)
class ClipSet:
    """Where clips come from: exactly one of `annotations`, `shards` and `tfds`.

    Attributes:
      annotations: a file that `data.annotations.lists.read_annotations` reads, or a folder that
        holds a folder of videos for each class.
      root: the folder that its paths start from; None is the folder of the file.
      format: its format, unless its name ends in .jsonl or .json, which say it themselves.
      separator: between the columns of text formats; None finds out.
      frame_pattern: names of the images in folders of images (`format="frames"`).
      shards: a folder that `internvideo-jax shard` wrote.
      tfds: a dataset of tensorflow_datasets, "name", "name/config" or "name:version".
      tfds_split: its split.
      media: what its clips are taken for, a name that the stage has fields for; of a mixture, the
        members state theirs.
    """

    annotations: str | None = None
    root: str | None = None
    format: Literal["auto"] | Format = "auto"
    separator: str | None = None
    frame_pattern: str | None = None
    shards: str | None = None
    tfds: str | None = None
    tfds_split: str = "train"
    media: str = "video"

    @property
    def name(self) -> str:
        """The file, folder or dataset."""
        return self.annotations or self.shards or self.tfds or "unset"


@dataclasses.dataclass(frozen=True)
class MixtureMember(ClipSet):
    """One of several sets of clips.

    Attributes:
      weight: its share of the examples (or batches), relative to the other members' weights.
      batch_size: clips of their batches over all processes, where it is not the run's.
      num_frames: frames per clip, where they are not those of the config.
      image_size: likewise.
    """

    weight: float = 1.0
    batch_size: int | None = None
    num_frames: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"{self.name}: expected a weight above 0, found {self.weight}; leave the member out"
            )

    @property
    def shape(self) -> tuple[str, int | None, int | None, int | None]:
        """What members whose clips are to lie in one batch must have in common."""
        return self.media, self.batch_size, self.num_frames, self.image_size


@dataclasses.dataclass(frozen=True)
class DataConfig(ClipSet):
    """Which clips a run sees, and what becomes of them on the host.

    Attributes:
      mixture: several sets of clips, instead of the one that the inherited fields name.
      mixture_by: whether every batch mixes the sets, or only those of the same `media`.
      num_classes: C; then batches hold labels, and every clip needs one below it. None: no labels.
      classes: their names in the order of the numbers, or a file of them (`class_names`); labels
        may then be names. None: labels are numbers.
      multi_label: whether a clip has any number of labels, which become multi-hot rows `[C]`.
      validation_share: of the clips of `annotations`, the share held out by `data.validation`.
      part: which side of that: the clips to train on, or those held out.
      sampling: which frames of a clip are taken (`data.transforms.sampling`).
      num_frames: T, frames per clip.
      sampling_rate: frames from one taken to the next (`sampling="dense"`).
      image_size: side of the square that the model sees, in pixels.
      resize: how frames reach that size (`preprocessing.VideoPreprocessing`).
      augmentation: what training does to the frames (`data.transforms.augmentation`);
        "none" takes the central view.
      rand_augment: RandAugment of fine-tuning, timm's notation.
      erase_probability: of random erasing in fine-tuning.
      flip: whether clips are mirrored at random; those of "ssv2" never are.
      num_sample: augmented copies of each clip, all of the same frames, side by side in the batch.
      segments: temporal views in evaluation.
      crops: spatial views in evaluation.
      vocabulary: file of the words that captions are cut into.
      tokenizer: what cuts them (`data.tokenizers`).
      prompt: what is put before every caption.
      max_text_length: tokens of a caption, its first and last one included; longer ones are cut.
      audio: what becomes of sound.
      missing_audio: whether clips without sound are errors, or zeros (with `has_audio`).
      features_dir: folder of features that were computed beforehand (`data.fields.features`).
      cache_dir: folder in which all frames of all clips, and their sound where it is used, are kept
        decoded, for small clips; made on first use, and anew when the clips change.
      workers: processes that decode; 0 uses threads of this one.
      stall_timeout: seconds without a batch after which loading starts anew at the same place.
    """

    mixture: tuple[MixtureMember, ...] = ()
    mixture_by: Literal["example", "batch"] = "example"
    num_classes: int | None = None
    classes: str | tuple[str, ...] | None = None
    multi_label: bool = False
    validation_share: float = 0.0
    part: Literal["train", "validation"] = "train"
    sampling: Sampling = "sparse"
    num_frames: int = 8
    sampling_rate: int = 4
    image_size: int = 224
    resize: Resize = "bilinear_short_side"
    augmentation: Augmentation = "none"
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"
    erase_probability: float = 0.25
    flip: bool = True
    num_sample: int = 1
    segments: int = 1
    crops: int = 1
    vocabulary: str | None = None
    tokenizer: TokenizerKind = "wordpiece"
    prompt: Prompt = ""
    max_text_length: int = 32
    audio: AudioPreprocessing = dataclasses.field(default_factory=AudioPreprocessing)
    missing_audio: Literal["error", "zeros"] = "error"
    features_dir: str | None = None
    cache_dir: str | None = None
    workers: int = 0
    stall_timeout: float = 600.0

    def __post_init__(self) -> None:
        positive = ("num_frames", "sampling_rate", "image_size", "num_sample", "segments", "crops")
        for name in (*positive, "max_text_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        pixels = self.segments * self.crops * self.num_frames * self.image_size**2
        if pixels > _MAX_PIXELS:
            raise ValueError(
                f"expected views of a clip of at most {_MAX_PIXELS:,} pixels, which are decoded"
                f" together, found num_frames {self.num_frames} of image_size {self.image_size} in"
                f" {self.segments} segments x {self.crops} crops, which are {pixels:,}"
            )
        if not 0 <= self.erase_probability <= 1:
            raise ValueError(
                f"expected erase_probability between 0 and 1, found {self.erase_probability}"
            )
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 (threads) or more, found {self.workers}")
        if not self.stall_timeout > 0:
            raise ValueError(f"stall_timeout: expected seconds, found {self.stall_timeout}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"validation_share: expected a share from 0 to below 1, found"
                f" {self.validation_share}"
            )
        if self.part == "validation" and not self.validation_share:
            raise ValueError("part: expected validation_share with 'validation'; set it")
        if self.validation_share and self.has_clips and self.annotations is None:
            raise ValueError(
                "validation_share: expected annotations, which can be divided, found others;"
                " name clips to evaluate on as eval_data"
            )
        if isinstance(self.classes, tuple) and len(self.classes) != self.num_classes:
            raise ValueError(
                f"classes: expected num_classes={self.num_classes} names, found"
                f" {len(self.classes)}; set both alike"
            )
        if self.multi_label and not self.num_classes:
            raise ValueError("multi_label: expected num_classes with it; set it")
        kinds = {member.shape for member in self.mixture}
        if self.mixture_by == "example" and len(kinds) > 1:
            raise ValueError(
                "mixture: expected members of one media, batch_size, num_frames and image_size, as"
                f" their clips share batches, found {sorted(kinds, key=str)}; set"
                ' mixture_by="batch"'
            )
        if len(kinds) > len({member.media for member in self.mixture}):
            raise ValueError(
                "mixture: expected one batch_size, num_frames and image_size for each kind of"
                f" media, found {sorted(kinds, key=str)}; set them alike"
            )

    @property
    def has_clips(self) -> bool:
        """Whether it names any clips."""
        return any((self.annotations, self.shards, self.tfds, self.mixture))

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the numbers; None where labels are numbers.

        Raises:
          OSError, ValueError: the file of `classes` is none, or not of `num_classes` names.
        """
        if isinstance(self.classes, str):
            return read_class_names(self.classes, self.num_classes)
        return self.classes

    def of_member(self, member: MixtureMember) -> "DataConfig":
        """The config with what a member of the mixture states for itself."""
        own = {name: getattr(member, name) for name in ("num_frames", "image_size")}
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(self, **given)

    @property
    def members(self) -> tuple[MixtureMember, ...]:
        """The sets of clips with their weights.

        Raises:
          ValueError: none is named, or a set has not exactly one place to come from.
        """
        fields = [field.name for field in dataclasses.fields(ClipSet)]
        own = MixtureMember(**{name: getattr(self, name) for name in fields})
        places = ("annotations", "shards", "tfds")
        if self.mixture and any(getattr(self, name) for name in places):
            raise ValueError(
                f"expected either mixture or one of {', '.join(places)}, found both; move"
                f" {self.name} into the mixture"
            )
        members = self.mixture or (own,)
        for number, member in enumerate(members):
            found = [name for name in places if getattr(member, name)]
            if len(found) != 1:
                where = f"data.mixture[{number}]" if self.mixture else "data"
                raise ValueError(
                    f"expected one of {', '.join(f'{where}.{name}' for name in places)}, found"
                    f" {' and '.join(found) or 'none'}; set"
                    f" one, e.g. --config.{where}.annotations=FILE"
                )
        return members
