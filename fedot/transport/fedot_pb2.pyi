from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Binding(_message.Message):
    __slots__ = ("run_id", "round", "site", "digest")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    site: str
    digest: str
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., site: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "version", "dataset_id")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    dataset_id: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., dataset_id: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("site", "role", "certificate_days_left", "chunk_bytes", "stall_timeout_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DAYS_LEFT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALL_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    role: str
    certificate_days_left: float
    chunk_bytes: int
    stall_timeout_s: float
    def __init__(self, site: _Optional[str] = ..., role: _Optional[str] = ..., certificate_days_left: _Optional[float] = ..., chunk_bytes: _Optional[int] = ..., stall_timeout_s: _Optional[float] = ...) -> None: ...

class NextRequest(_message.Message):
    __slots__ = ("run_id", "wait_s", "peek")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    PEEK_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    wait_s: float
    peek: bool
    def __init__(self, run_id: _Optional[str] = ..., wait_s: _Optional[float] = ..., peek: _Optional[bool] = ...) -> None: ...

class NextReply(_message.Message):
    __slots__ = ("wait", "run_json", "task_json", "over")
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    TASK_JSON_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    wait: Wait
    run_json: str
    task_json: str
    over: Over
    def __init__(self, wait: _Optional[_Union[Wait, _Mapping]] = ..., run_json: _Optional[str] = ..., task_json: _Optional[str] = ..., over: _Optional[_Union[Over, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("why",)
    WHY_FIELD_NUMBER: _ClassVar[int]
    why: str
    def __init__(self, why: _Optional[str] = ...) -> None: ...

class Over(_message.Message):
    __slots__ = ("run_id", "outcome")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    outcome: str
    def __init__(self, run_id: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("run_id", "round", "phase", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    phase: str
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: _Optional[bool] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateUploadRequest(_message.Message):
    __slots__ = ("binding", "size", "metadata_json")
    BINDING_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    binding: Binding
    size: int
    metadata_json: str
    def __init__(self, binding: _Optional[_Union[Binding, _Mapping]] = ..., size: _Optional[int] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class UploadRef(_message.Message):
    __slots__ = ("upload_id", "binding")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    binding: Binding
    def __init__(self, upload_id: _Optional[str] = ..., binding: _Optional[_Union[Binding, _Mapping]] = ...) -> None: ...

class UploadStatus(_message.Message):
    __slots__ = ("upload_id", "committed_offset", "is_committed")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    IS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    committed_offset: int
    is_committed: bool
    def __init__(self, upload_id: _Optional[str] = ..., committed_offset: _Optional[int] = ..., is_committed: _Optional[bool] = ...) -> None: ...

class FilesRequest(_message.Message):
    __slots__ = ("binding",)
    BINDING_FIELD_NUMBER: _ClassVar[int]
    binding: Binding
    def __init__(self, binding: _Optional[_Union[Binding, _Mapping]] = ...) -> None: ...

class FilesReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("binding", "name", "offset")
    BINDING_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    binding: Binding
    name: str
    offset: int
    def __init__(self, binding: _Optional[_Union[Binding, _Mapping]] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("name", "config_yaml")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_YAML_FIELD_NUMBER: _ClassVar[int]
    name: str
    config_yaml: str
    def __init__(self, name: _Optional[str] = ..., config_yaml: _Optional[str] = ...) -> None: ...

class JobRef(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "name", "state", "submitted_by", "submitted_at", "reason", "round", "rounds", "run_id", "results_digest", "config_yaml", "members", "metrics_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_YAML_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    METRICS_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    name: str
    state: str
    submitted_by: str
    submitted_at: str
    reason: str
    round: int
    rounds: int
    run_id: str
    results_digest: str
    config_yaml: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    metrics_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., submitted_by: _Optional[str] = ..., submitted_at: _Optional[str] = ..., reason: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., run_id: _Optional[str] = ..., results_digest: _Optional[str] = ..., config_yaml: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., metrics_json: _Optional[_Iterable[str]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("site", "phase", "seconds_in_phase", "is_late", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_IN_PHASE_FIELD_NUMBER: _ClassVar[int]
    IS_LATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    phase: str
    seconds_in_phase: float
    is_late: bool
    reason: str
    def __init__(self, site: _Optional[str] = ..., phase: _Optional[str] = ..., seconds_in_phase: _Optional[float] = ..., is_late: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class JobList(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("job_id", "round")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    round: int
    def __init__(self, job_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...
