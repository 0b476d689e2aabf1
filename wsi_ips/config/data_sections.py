"""Recipe sections about the slides: reading, tissue, tiles, labels and splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_ips.config.key_types import AtLeast0, Below1, Count, ListedIn, Positive, RecipePath, Section, Share, Whole
from wsi_ips.geometry import Scale
from wsi_ips.labels import NONE, SEPARATOR, Leak, Task, matched

TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class SlidesSection(Section):
    """Settings for opening slides."""

    reader: Annotated[str, ListedIn("readers")] = Field("auto", description="how slides are opened and decoded")
    unit: Literal["um", "pixels"] = Field(
        "um",
        description="what µm and µm/px in recipe and results mean: `um`, by the scale of the file or the manifest; "
        "`pixels`, for plain images: each level-0 pixel counts as 1 µm, whatever the file states",
    )

    @property
    def mpp_override(self) -> Scale | None:
        """µm per level-0 pixel of every slide; None where files and manifest say it."""
        return Scale(1.0, 1.0) if self.unit == "pixels" else None


class TissueSection(Section):
    """Separation of tissue from glass on a thumbnail."""

    mpp: Positive = Field(8.0, description="scale of the thumbnail, µm/px")
    min_saturation: Share = Field(0.06, description="lowest saturation of stain (0-1); bounds Otsu's threshold")
    min_area_um2: AtLeast0 = Field(40_000.0, description="smaller tissue pieces are dropped, µm²")
    max_hole_um2: AtLeast0 = Field(20_000.0, description="holes up to this area are filled, µm²")
    method: Annotated[str, ListedIn("tissue_methods")] = Field(
        "auto",
        description="`otsu`: threshold on saturation; `adaptive`: above the noise of the slide's own glass; `stain`: "
        "threshold on density; `auto`: the first of them that can be trusted; `all`: everything counts as tissue; "
        "`model`: your own network",
    )
    model: RecipePath | None = Field(
        None, description="TorchScript or ONNX file of method `model`: ImageNet-normalised RGB in, logits of tissue out"
    )

    def segmentation(self) -> dict[str, Any]:
        """Return the keyword arguments of :class:`wsi_ips.tissue.TissueRules`."""
        return self.model_dump(exclude={"mpp"})


# Keys of section `tiles` that do not decide which tiles a slide has; classes count for annotated slides alone
NOT_OF_TILES = frozenset({"store", "location", "imported", "shared", "accept_lost_tumour", "annotation_classes"})


class TilesSection(Section):
    """Position of tiles, and the scale at which their pixels are read."""

    mpp: Positive = Field(0.5, description="scale of the patches, µm/px; never upsampled")
    patch_px: Annotated[int, Field(ge=8, le=4096)] = Field(256, description="side of a patch, px")
    stride_px: Count | None = Field(None, description="step between tiles, patch px; empty = patch_px (no overlap)")
    min_tissue_fraction: Share = Field(0.25, description="tiles with less tissue are left out")
    exclude_flags: tuple[Literal["pen", "blur", "fold", "bubble"], ...] = Field(
        ("pen",), description="leave out tiles with one of these flags"
    )
    accept_lost_tumour: bool = Field(
        False,
        description="keep slides whose annotated tumour lies in no tile; otherwise they fail: one outline that is as "
        "large as a tile and lies in none, or all outlines of a slide",
    )
    store: Literal["zarr", "hdf5"] = Field("zarr", description="format of the tile index")
    imported: RecipePath | None = Field(
        None, description="folder with tile coordinates of another tool to use; `mpp` and `patch_px` must match"
    )
    annotation_classes: dict[str, str | None] = Field(
        default_factory=dict,
        description="class to count another class or group of the annotations as: `tumor`, `exclude`, a class of the "
        "recipe, or null for other tissue: `{none: tumor, dcis: exclude, follicle: null}`; `none` = without a class",
    )
    shared: RecipePath | None = Field(None, description="another run folder whose tiles this run uses and adds to")
    location: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.+\.(zarr|h5)$")] | None = Field(
        None, description="URL of the tile index (`s3://bucket/cohort.zarr`, or `.h5`); empty = in the run folder"
    )

    @property
    def stride(self) -> int:
        """Step between tiles in patch pixels."""
        return self.patch_px if self.stride_px is None else self.stride_px


class TaskSettings(Section):
    """A classification task: its classes, and whether one or several of them can apply."""

    classes: tuple[str, ...] = Field(..., description="all classes")
    kind: Literal["single", "multi"] = Field(
        "single",
        description="`single`: exactly one class applies; `multi`: any number, `a;b` in the manifest, or `none`",
    )
    background: bool | None = Field(
        None,
        description="whether slides of the first class (`multi`: of none) hold nothing to find, so that each of their "
        "tiles is an example of that class; `false` for subtypes and grades; empty = by the name of the class (true "
        "for `normal`, `negative`, `benign`, `none`, `0` ...)",
    )

    def as_task(self, name: str) -> Task:
        """Return the task under a name, with what was assumed about its background."""
        task = Task(name, self.classes, self.kind, self.background)
        return replace(task, background=task.has_background)

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Self:
        least = 2 if self.kind == "single" else 1
        if len(self.classes) < least or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"needs at least {least} class name{'s' * (least - 1)}, all different")
        if not all(name.strip() == name != "" for name in self.classes):
            raise ValueError("class names must not be empty, or begin or end with a space")
        if self.kind == "multi" and any(SEPARATOR in name or name == NONE for name in self.classes):
            raise ValueError(f"with `kind: multi` no class may be called `{NONE}` or contain `{SEPARATOR}`")
        return self


class FurtherTask(TaskSettings):
    """One more task on the same slides; it has its own query."""

    column: str | None = Field(None, description="manifest column; empty = the task's name")


class LabelsSection(TaskSettings):
    """The manifest column to learn, and its classes in order."""

    column: str = Field("label", description="manifest column with the slide label")
    classes: tuple[str, ...] = Field(
        ("normal", "tumor"), description="all classes; the last one is the positive class of the heatmap"
    )
    further: dict[TaskName, FurtherTask] = Field(
        default_factory=dict, description="more tasks, learned together with the label: a name, then `classes`, `kind`"
    )
    map: dict[str, str | None] = Field(
        default_factory=dict,
        description="class to count another label of the manifest as: `{itc: null, micro: tumor}`; null = unknown, "
        "so the slide is only predicted",
    )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks: the label, then the further ones in order."""
        return (self.as_task("label"), *(task.as_task(name) for name, task in self.further.items()))

    @property
    def assumed(self) -> tuple[str, ...]:
        """What is assumed about the background of tasks that do not state it, a line per task, for the user."""
        named: dict[str, TaskSettings] = {"labels": self}
        named |= {f"labels.further.{name}": task for name, task in self.further.items()}
        unstated = [(key, t) for key, t in named.items() if t.background is None and t.kind == "single"]
        return tuple(
            f"slides of `{task.classes[0]}` are taken to hold nothing to find, so all their tiles teach that class; if "
            f"that is wrong, set `{key}.background: false`"
            if task.as_task(key).background
            else f"`{task.classes[0]}` is taken as a finding like the other classes, so tiles of its slides count by "
            f"attention; if its slides hold nothing to find, set `{key}.background: true`"
            for key, task in unstated
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Manifest column of each task."""
        return (self.column, *(task.column or name for name, task in self.further.items()))

    def spelled(self, label: str | None) -> str | None:
        """Return a label of the manifest as the recipe spells it, where it does."""
        return label if label is None else matched(label, (*self.map, *self.classes))

    def mapped(self, label: str | None) -> str | None:
        """Return the class that a label of the manifest counts as, by `map`."""
        known = self.spelled(label)
        return known if known is None else self.map.get(known, known)

    @model_validator(mode="after")
    def _mapped_to_classes(self) -> Self:
        odd = [f"{name}: {to}" for name, to in self.map.items() if to is not None and to not in self.classes]
        if odd:
            raise ValueError(f"`map`: {', '.join(odd)} is not a class; the classes are {', '.join(self.classes)}")
        return self

    @model_validator(mode="after")
    def _further_tasks_have_other_names(self) -> Self:
        if "label" in self.further:
            raise ValueError("`further`: `label` is the name of the first task; choose another one")
        return self


class SplitSection(Section):
    """Assignment of slides to training, validation and test."""

    file: RecipePath | None = Field(
        None, description="splits made by `wsi-ips split` (.json, .csv); empty = column `split` of the manifest"
    )
    fold: Whole = Field(0, description="fold of the file to use, from 0")
    val_share: Below1 = Field(
        0.0,
        description="share of the training slides used for validation (whole patients, labels in proportion), if no "
        "slide has split `val`",
    )
    allow: tuple[Leak, ...] = Field(
        (), description="what two splits may share: a `patient`, a file's `content`, a similar `thumbnail`"
    )
