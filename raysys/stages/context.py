"""The config of a whole run, and what every stage is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysys.cluster import ClusterSettings, Resources, connect
from raysys.data.dataset import Dataset
from raysys.data.import_settings import ImportSettings
from raysys.mirror import Mirror, checked_uri
from raysys.models.published import published
from raysys.models.registry import ModelSettings
from raysys.runs import RunDirectory
from raysys.settings import Settings, nearest, parse_nested, parse_settings
from raysys.text.embeddings import EmbeddingSettings
from raysys.text.profiles import ProfileSettings
from raysys.text.rerank import RerankSettings
from raysys.text.summaries import SummarySettings
from raysys.training.elmrec_settings import ELMRecSettings
from raysys.training.graph_lm_settings import GraphLMSettings
from raysys.training.loop import TrainSettings
from raysys.training.yes_no_examples import YesNoSettings


class TrainedModelSettings(ModelSettings):
    """A model of a run."""

    shuffle_profiles: bool = False
    """The control: profiles are handed to the wrong users and items."""
    train_noise: float = Field(default=0.0, ge=0, le=1)
    """The control: fake interactions added to train, as a share of the true ones."""
    start_from: str | None = None
    """A model above this one, or a folder of a saved model: its backbone is the start."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """For linear models: settings and the values that validation chooses among."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of [train] that are others for this model."""

    @property
    def control(self) -> bool:
        """Whether the model is there to be compared with, never to be used."""
        return self.shuffle_profiles or self.train_noise > 0 or self.without_text

    @property
    def without_text(self) -> bool:
        """Whether this is an aligned model whose weight is 0: the fair baseline of another."""
        return self.alignment is not None and self.alignment.weight == 0

    @field_validator("train")
    @classmethod
    def _trains(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "refit" in values:
            raise ValueError("refit is for all models of a run: set it in [train]")
        parse_nested(TrainSettings, values, source="train")
        return values

    @model_validator(mode="after")
    def _linear_or_not(self) -> Self:
        if self.grid and not self.linear:
            raise ValueError(f"grid is for linear models; sweep '{self.backbone}' with raysys tune")
        if self.start_from is not None and self.linear:
            raise ValueError(f"'{self.backbone}' has no start: start_from is for graph models")
        if self.shuffle_profiles and not self.reads_profiles(self.grid):
            raise ValueError(f"'{self.backbone}' reads no profiles here that could be shuffled")
        if self.train_noise and self.backbone == "blend":
            raise ValueError("a blend is not trained: set train_noise at its two models")
        if self.linear and (ignored := sorted(set(self.train) - {"seed"})):
            raise ValueError(
                f"'{self.backbone}' is not trained in steps: leave out train.{ignored[0]}"
            )
        return self


class EvaluateSettings(Settings):
    """All-rank evaluation on the test split."""

    ks: tuple[int, ...] = Field(default=(5, 10, 20), min_length=1)
    """Cut-offs."""
    mask: Literal["train", "train_valid"] = "train"
    """What is left out of the lists. RLMRec masks train only."""
    slices: tuple[int, ...] = (10, 20)
    """Users with fewer train interactions than this are also measured by themselves."""


class RecommendSettings(Settings):
    """Top-k lists for all users."""

    k: int = Field(default=20, ge=1, le=1000)
    """Length of each list."""
    model: str = "best"
    """A trained model's name; `best` takes the highest validation Recall@20, controls excluded."""


class ReportSettings(Settings):
    """The report page."""

    title: str = "raysys run"
    """Heading of the page."""
    users: int = Field(default=10, ge=0, le=100)
    """Example users shown with history and recommendations."""
    group_column: str | None = None
    """Item column whose first word or comma-separated entry colours the map of items."""


class RunSettings(Settings):
    """One run from raw files to the report. Each section is one stage's settings."""

    out: Path
    """The run directory."""
    mirror: str | None = None
    """An object store that keeps finished stages too: `s3://`, `gs://` or `file://`."""
    data: ImportSettings
    """Where interactions and items come from, how they are filtered and split."""
    profiles: ProfileSettings = ProfileSettings()
    """Item and user profiles."""
    summaries: SummarySettings = SummarySettings()
    """Summaries of users' histories, by `raysys summarize`."""
    embeddings: EmbeddingSettings = EmbeddingSettings()
    """Vectors of the profiles."""
    models: dict[str, TrainedModelSettings] = Field(default_factory=dict)
    """The models to train, by name."""
    train: TrainSettings = TrainSettings()
    """Training of every model."""
    yes_no: YesNoSettings = YesNoSettings()
    """The yes/no recommender, by `raysys finetune yes-no`."""
    elmrec: ELMRecSettings = ELMRecSettings()
    """ELMRec, by `raysys train elmrec`."""
    graph_lm: GraphLMSettings = GraphLMSettings()
    """The graph-attentive language model, by `raysys train graph-lm`."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Measurement."""
    recommend: RecommendSettings = RecommendSettings()
    """Lists for all users."""
    rerank: RerankSettings = RerankSettings()
    """Reranking and explanations by a language model, by `raysys rerank` and `raysys explain`."""
    report: ReportSettings = ReportSettings()
    """The page."""
    cluster: ClusterSettings = ClusterSettings()
    """What Ray may use; does not change results."""

    def with_models(self, backbones: Sequence[str], alignments: Sequence[str]) -> Self:
        """The same run with RLMRec's published rows, each backbone × alignment, as its models.

        Raises:
            UserError: an unknown backbone or alignment; the known ones are listed.
        """
        models = {
            backbone if alignment == "none" else f"{backbone}_{alignment}": published(
                backbone, alignment
            ).model_dump()
            for backbone in backbones
            for alignment in alignments
        }
        values = self.model_dump() | {"models": models}
        return parse_settings(type(self), values, source="--model")

    def training_of(self, name: str) -> TrainSettings:
        """[train], with what one of the models has of its own."""
        return self.train.model_copy(update=self.models[name].train)

    @field_validator("out", mode="before")
    @classmethod
    def _is_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError(f"work is done in a folder; to keep it there too, set mirror={value}")
        return value

    @field_validator("mirror")
    @classmethod
    def _is_store(cls, value: str | None) -> str | None:
        return None if value is None else checked_uri(value)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for key, wanted in (("recommend", self.recommend.model), ("rerank", self.rerank.model)):
            if wanted != "best" and wanted not in self.models:
                names = list(self.models)
                raise ValueError(f"{key}.model '{wanted}' is not trained: {nearest(wanted, names)}")
        above: list[str] = []
        for name, model in self.models.items():
            if model.backbone == "blend":
                for part in (model.settings["first"], model.settings["second"]):
                    if part not in above:
                        raise ValueError(
                            f"models.{name} blends '{part}', which is no model above it: "
                            f"{nearest(part, above)}"
                        )
            start = model.start_from
            if start in self.models:
                if start not in above:
                    raise ValueError(f"models.{name} starts from '{start}', which is not above it")
                if self.models[start].backbone != model.backbone:
                    raise ValueError(
                        f"models.{name} starts from '{start}', which is another backbone: "
                        f"'{self.models[start].backbone}', not '{model.backbone}'"
                    )
            above.append(name)
        return self


@dataclass(frozen=True)
class Share:
    """What a run has that is one of several at a time: a trial of a sweep.

    Attributes:
        resources: its part of the cluster.
        reuse: runs and folders of runs whose finished stages it takes; see `RunDirectory`.
        watch: called with stage, epoch and figure after each validation. Models are then trained
            in this process and not by workers of Ray Train, which take long to start; none: they
            are not.
    """

    resources: Resources
    reuse: tuple[Path, ...] = ()
    watch: Callable[[str, int, float], None] | None = None


class RunContext:
    """A run at work: its settings, its directory, and Ray from the first stage that needs it."""

    def __init__(self, settings: RunSettings, share: Share | None = None) -> None:
        self.settings = settings
        self.share = share
        # What is one of several runs is kept by whoever runs them.
        mirror = None if share or settings.mirror is None else Mirror(settings.mirror)
        self.run = RunDirectory(settings.out, share.reuse if share else (), mirror)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.run.lock())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @cached_property
    def resources(self) -> Resources:
        """What this run may use of the cluster; connects to Ray when first asked for."""
        found = self._stack.enter_context(connect(self.settings.cluster))
        return found if self.share is None else self.share.resources

    @property
    def trained(self) -> str:
        """The stage whose models are measured and recommend."""
        return "refit" if self.settings.train.refit else "train"

    @cached_property
    def dataset(self) -> Dataset:
        """The imported data set of this run."""
        source = self.settings.data
        folder = source.interactions.parent.name if source.interactions else source.source
        return Dataset.load(self.run.path("data"), name=folder)
