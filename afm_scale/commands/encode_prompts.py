"""Embeds prompts with the text encoder of a pipeline, alone or shared by the ranks of a launcher.

On several GPUs: python launchers/torchrun.py --standalone --nproc-per-node=8 tools/encode_prompts.py PROMPTS OUT ...
Different prompts are embedded once, and which of them each text of the source is stands beside them. Started again
after it was killed, it goes on. Exit code 0 if OUT is complete, 2 if something cannot be read or written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors.torch import save

from ..core.errors import ConfigError, DataError
from ..core.files import write_atomically
from ..core.packages import require
from ..core.ranges import Range
from ..core.screen import say
from ..core.typed import build
from ..data.description import PromptContent, PromptEncoder, file_sha256
from ..data.embeddings import DTYPES, Embedding, EmbeddingRecords
from ..data.members import TEXT
from ..data.prompts import CLASS_NAMES, ROWS_NAME
from ..packing.texts import read_texts
from ..packing.writer import Packing
from ..parallel.agreement import agreed
from ..parallel.launch import Ranks, launch
from ..run.arguments import add_number, request_of
from .encoding import WriteShard, encode_all, encoding_plan

if TYPE_CHECKING:
    from ..models.text_pipelines import TextPipeline  # which needs optional packages

_DTYPE = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """The command's arguments."""

    prompts: Path
    out: Path
    pipeline: Path
    column: str | None = None
    length: int | None = None  # None: of the longest prompt, the empty one too
    empty: str = ""
    batch_size: int = 32
    per_shard: int = 1024
    precision: Literal["fp32", "bf16"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", type=Path, metavar="PROMPTS",
        help="a text file, one prompt a line; a parquet file; or a packed set of images or latents with texts")
    add("out", type=Path, metavar="OUT")
    add("--pipeline", type=Path, required=True, metavar="FOLDER",
        help="of a pipeline, as diffusers' save_pretrained writes it: its text encoder and tokenizer are read")
    add("--column", metavar="NAME", help="of a parquet file (default: text, caption or prompt)")
    add_number(parser, "--length", int, Range(1, 65_536), metavar="L",
        help="tokens that all are padded to; longer prompts are cut, and counted (default: of the longest)")
    add("--empty", default="", metavar="TEXT", help="the prompt that stands for none (default: no text)")
    add_number(parser, "--batch-size", int, Range(1, 1_000_000), default=32, help="prompts embedded at once by a rank")
    add_number(parser, "--per-shard", int, Range(1, 1_000_000), default=1024, help="prompts of a shard (default 1024)")
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of the encoder, and of what is stored")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(options: argparse.Namespace) -> int:
    return encode_command(request_of(EncodeRequest, options))


@dataclass(frozen=True)
class _Job:
    request: EncodeRequest
    pipeline: TextPipeline
    prompts: Sequence[str]  # different ones, and the empty one last
    rows: bytes  # the file that says which of them each text is
    packing: Packing
    content: PromptContent
    about: str  # all that the result depends on, a line for each
    num_cut: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.prompts) // self.request.per_shard)

    def numbers(self, shard: int) -> range:
        """Of the prompts of a shard."""
        first = shard * self.request.per_shard
        return range(first, min(first + self.request.per_shard, len(self.prompts)))

    def num_samples(self, shard: int) -> int:
        return len(self.numbers(shard))

    def writer(self, shards: Sequence[int]) -> WriteShard:
        return partial(_encode_shard, self)

    def finish(self) -> None:
        write_atomically(self.request.out / ROWS_NAME, lambda file: file.write(self.rows))
        self.packing.finish(self.num_shards, CLASS_NAMES)


def encode_command(request: EncodeRequest) -> int:
    """Writes OUT. A job that was killed goes on where it was.

    The result depends on the texts, the pipeline, the length, the precision, the batch size and the kind of device,
    not on the number of ranks. Raises UserError, the same one on every rank, for what cannot be read or written.
    """
    for package in ("diffusers", "transformers"):
        require(package, "embedding prompts", "text")
    with launch(encoding_plan(request.device)) as ranks:
        with agreed():
            job = _prepare(request, ranks)
        encode_all(job, ranks, what="what is embedded", unit="prompt", doing="embedding")
        if ranks.rank == 0:
            _tell(job)
    return 0


def _prepare(request: EncodeRequest, ranks: Ranks) -> _Job:
    from ..models.text_pipelines import read_text_pipeline

    texts = read_texts(request.prompts, request.column)
    pipeline = read_text_pipeline(request.pipeline, ranks.device, precision=request.precision)
    different, rows = texts.different()
    prompts = [*different, request.empty]
    if request.length is not None and request.length > pipeline.longest:
        raise ConfigError(
            f"--length {request.length} is more than the {pipeline.longest} tokens that a {pipeline.name} looks at; "
            f"give --length {pipeline.longest} or less"
        )
    if pipeline.all_seen and request.length not in (None, pipeline.longest):
        raise ConfigError(
            f"--length {request.length} is less than the {pipeline.longest} tokens of every prompt of a "
            f"{pipeline.name}, whose transformer sees those that pad it too; leave --length out"
        )
    counts = [pipeline.count(prompt) for prompt in prompts]
    length = request.length or min(max(counts), pipeline.longest)
    rows_file = save({"row": rows})
    content = PromptContent(
        length=length, width=pipeline.width, pooled=pipeline.pooled, dtype=_DTYPE[request.precision],
        encoder=PromptEncoder(
            pipeline=pipeline.name, text_encoder_sha256=_sum_of(pipeline.files),
            tokenizer_sha256=_sum_of(pipeline.tokenizer_files), template=pipeline.template,
            precision=request.precision, padded=length if pipeline.all_seen else None,
        ),
        empty=request.empty, num_texts=len(texts.texts), texts_sha256=texts.sha256,
        rows_sha256=sha256(rows_file).hexdigest(),
    )
    _check_readable(content)
    num_cut = sum(count > length for count in counts)
    settings = {
        "batch_size": request.batch_size, "per_shard": request.per_shard, "device": ranks.device.type,
        "prompts_cut": num_cut, "longest_prompt": max(counts),
    }
    about = json.dumps({**asdict(content), **settings}, indent=1)
    packing = Packing(request.out, settings, content)
    return _Job(request, pipeline, prompts, rows_file, packing, content, about, num_cut)


def _check_readable(content: PromptContent) -> None:
    """Raises ConfigError for what dataset.json cannot say, such as a template from a tokenizer's folder."""
    try:
        build(PromptContent, asdict(content))
    except ConfigError as error:
        raise ConfigError(f"these prompts could not be described: {error}; give another pipeline or --empty") from None


def _sum_of(files: Sequence[Path]) -> str:
    """SHA-256 of what `sha256sum` prints of the files, in the first one's folder; others are named with theirs."""
    first = files[0].parent
    try:
        names = [path.name if path.parent == first else f"{path.parent.name}/{path.name}" for path in files]
        lines = [f"{file_sha256(path)}  {name}\n" for path, name in zip(files, names, strict=True)]
    except OSError as error:
        raise DataError(f"{first} cannot be read: {error.strerror or error}; restore it") from None
    return sha256("".join(lines).encode()).hexdigest()


def _encode_shard(job: _Job, shard: int, advance: Callable[[int], object]) -> None:
    records, numbers, step = EmbeddingRecords(job.content), job.numbers(shard), job.request.batch_size
    with job.packing.shard(shard) as writer:
        for first in range(numbers.start, numbers.stop, step):
            batch = range(first, min(first + step, numbers.stop))
            for number, embedding in zip(batch, _embedded(job, batch), strict=True):
                text = job.prompts[number]
                members = {"safetensors": records.write(embedding), TEXT: text.encode()}
                writer.add(number, int(number == len(job.prompts) - 1), members)
            advance(len(batch))


def _embedded(job: _Job, numbers: range) -> list[Embedding]:
    """As the pipeline embeds them in one batch, without what is masked."""
    found = job.pipeline.encode([job.prompts[number] for number in numbers])
    dtype = DTYPES[job.content.dtype]
    embeddings, mask, pooled = found.embeddings.to("cpu", dtype), found.mask.cpu(), found.pooled.to("cpu", dtype)
    result = []
    for number, tokens, seen, pool in zip(numbers, embeddings, mask, pooled, strict=True):
        prompt = repr(job.prompts[number][:80])
        count = int(seen.sum())
        if count == 0 or not bool(seen[:count].all()):
            raise DataError(
                f"the {job.pipeline.name} masks other tokens of {prompt} than those at its end; such embeddings are "
                "not stored"
            )
        tokens = tokens[:min(count, job.content.length)]
        if not bool(tokens.isfinite().all() and pool.isfinite().all()):
            raise DataError(
                f"the embedding of {prompt} is not finite in {job.content.dtype}; use --precision fp32, or another "
                "text encoder"
            )
        result.append(Embedding(tokens, pool))
    return result


def _tell(job: _Job) -> None:
    content = job.content
    say(
        f"{len(job.prompts) - 1:,} different prompts of {content.num_texts:,}, and the empty one, embedded in "
        f"{job.request.out}: {content.length} tokens of {content.width} numbers"
    )
    if job.num_cut:
        say(f"{job.num_cut:,} of them are longer, and were cut to {content.length} tokens (--length)")
