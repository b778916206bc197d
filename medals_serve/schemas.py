"""What the API takes and answers, as JSON; OpenAPI is made of these."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medals_rt.common.choices import Kind, Modality, modality_named
from medals_rt.common.notes import Severity
from medals_serve.jobs import JobStatus


def _modality(given: Any) -> Any:
    return modality_named(given) if isinstance(given, str) else given


AskedModality: TypeAlias = Annotated[Modality, BeforeValidator(_modality)]
"""A modality by any of its names."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NoteState(BaseModel):
    """What a person should know of a result."""

    code: str
    text: str
    severity: Severity


class ProblemState(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str = Field(description="The message that the command line gives.")
    code: str = Field(description="What went wrong, for programs.")


class SeriesChoice(BaseModel):
    """A series of an upload that holds several."""

    series: str = Field(description="Its UID.")
    number: int | None
    description: str
    modality: str
    images: int


class ChoiceState(ProblemState):
    """That an upload holds several series, of which one is to be chosen."""

    upload: str = Field(description="To be named in a second request, without a body.")
    choices: list[SeriesChoice]


class SessionState(BaseModel):
    """A session that was opened."""

    session: str = Field(description="A secret: the header Medals-Session of further requests.")
    expires_in_s: float = Field(description="Without a request; each starts it again.")


class ClassState(BaseModel):
    """A class that the model knows."""

    id: str = Field(description="modality/kind/number", examples=["CT/anatomy/1"])
    modality: Modality
    kind: Kind
    name: str
    sentence: str = Field(description="A prompt that names it.")
    groups: list[str]
    color: str = Field(examples=["#d94d4d"])


class GroupState(BaseModel):
    """Classes that are asked for together."""

    name: str
    class_ids: list[str]


class ModalityState(BaseModel):
    """A modality that images have."""

    name: Modality
    in_hounsfield: bool = Field(description="Whether values of its images are Hounsfield units.")


class FormatState(BaseModel):
    """A format of results."""

    name: str = Field(examples=["nii.gz"])
    title: str = Field(description="For people.", examples=["NIfTI (.nii.gz)"])
    one_class: bool = Field(description="Whether its files hold one class.")


class ModelState(BaseModel):
    """The model and what can be asked of it."""

    name: str
    hash: str
    version: str = Field(description="Of medals-rt.")
    notice: str | None = Field(description="To be shown wherever results are.")
    arithmetic: str = Field(examples=["openvino/bf16"])
    free_text: bool = Field(description="Whether sentences may name what is no class.")
    modalities: list[ModalityState]
    classes: list[ClassState]
    groups: list[GroupState]
    presets: list[str]
    default_preset: str
    options: dict[str, Any] = Field(description="Options of a job, and their defaults here.")
    output_formats: list[str]
    formats: list[FormatState] = Field(description="The same, and what they are.")
    input_endings: list[str]
    max_prompts: int
    max_upload_bytes: int
    max_voxels: int


class ReadingState(BaseModel):
    """What a sentence was read as."""

    sentence: str
    class_id: str
    modality: Modality
    kind: Kind
    name: str
    color: str
    matched: str


class SuggestionState(BaseModel):
    """A class that may be meant."""

    class_id: str
    modality: Modality
    kind: Kind
    name: str
    sentence: str
    color: str


class PromptsState(BaseModel):
    """How a text is read."""

    reading: list[ReadingState]
    suggestions: list[SuggestionState]
    problem: ProblemState | None = Field(description="Why the text can't be used; null if it can.")


class ImageState(BaseModel):
    """An image of this session."""

    image: str
    filename: str
    shape_dhw: tuple[int, int, int]
    spacing_dhw_mm: tuple[float, float, float]
    modality: Modality | None
    geometry_stated: bool
    has_prompts: bool = Field(description="Whether the file holds prompts of its own.")
    series_number: int | None = Field(default=None, description="Of a DICOM series.")
    series_description: str | None = Field(default=None, description="Of a DICOM series.")
    output_formats: list[str]
    notes: list[NoteState]
    size_bytes: int


class MaskState(BaseModel):
    """A label map drawn on an image."""

    mask: str
    image: str
    labels: list[int]


class JobBody(_Closed):
    """What a job is asked for."""

    image: str
    prompts: list[str] | str | dict[str, str | dict[str, str]] | None = Field(
        default=None,
        description="Sentences (labels 1, 2, ...), one sentence, or label to sentence as a "
        "`prompts.json` has them, with lesions in a mapping of their own, `lesions`. Left out: "
        "those in the image's file.",
        examples=[["Liver in abdominal CT"]],
    )
    modality: AskedModality | None = Field(
        default=None, description="Of the image, for sentences that don't name it."
    )
    spatial_prompts: str | None = Field(
        default=None,
        description="A mask: for hybrid mode, or as the corrected result of `corrects`.",
    )
    corrects: str | None = Field(
        default=None,
        description="A finished job of the same image, whose result was corrected: windows that "
        "decide about what differs from `spatial_prompts` are shown it, all others what they were "
        "shown in that job. Without `spatial_prompts`, what that job was shown is kept.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="As GET /v1/model lists them.", examples=[{"seed": 0}]
    )


class FoundClass(BaseModel):
    """What came of one prompt."""

    label: int
    class_id: str | None = Field(description="null for free text")
    name: str
    sentence: str
    modality: Modality
    kind: Kind
    color: str
    voxels: int
    volume_ml: float
    lesions: int | None = Field(description="Number of lesions; null for anatomy.")


class JobState(BaseModel):
    """How far a job is."""

    job: str
    image: str
    status: JobStatus
    position: int | None = Field(description="Jobs that run before it, while it is queued.")
    stage: str | None
    windows_done: int
    windows_total: int
    coarse_parts: int = Field(
        description="Parts of the coarse result that can be had while the fine stage runs, one a "
        "group of classes: `/v1/jobs/{job}/coarse/1` and on."
    )
    corrects: str | None = Field(description="The job whose result it corrects.")
    probabilities: bool = Field(description="Whether it keeps probability maps.")
    seconds_left: float | None = Field(description="Of the stage that runs.")
    seconds_run: float
    classes: list[FoundClass] | None = Field(description="When done.")
    notes: list[NoteState]
    incomplete: str | None = Field(description="What a time budget left out.")
    problem: ProblemState | None


class SessionContent(BaseModel):
    """What a session holds."""

    expires_in_s: float
    images: list[ImageState]
    jobs: list[JobState]


class JobList(BaseModel):
    """The jobs of a session."""

    jobs: list[JobState]


Table = Literal["classes", "lesions"]
Form = Literal["json", "csv"]
