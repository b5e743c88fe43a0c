"A small hub on loopback that speaks the hub's protocol, and tiny repositories to serve from it."

import hashlib
import io
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(/.*)?"
)
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    "Files of one repository, and what is wrong with it"

    files: dict  # path -> bytes
    gated: bool = False  # 401 for everything
    cut: set = field(default_factory=set)  # files whose first transfer ends half way
    slow: set = field(default_factory=set)  # files that are never sent
    lost: set = field(default_factory=set)  # files that are listed and not there

    @cached_property
    def commit(self) -> str:
        "40 hexadecimal digits that name the content"
        told = [[path, _oid(content)] for path, content in sorted(self.files.items())]
        return hashlib.sha1(json.dumps(told).encode()).hexdigest()

    def entries(self, folder, recursive) -> list:
        "List files below a folder, and folders unless it is recursive"
        found, folders = [], set()
        for path, content in self.files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            rest = path[len(folder) + 1 :] if folder else path
            if "/" in rest and not recursive:
                folders.add(path[: len(path) - len(rest)] + rest.split("/")[0])
                continue
            found.append(self.entry(path, content))
        return found + [dict(type="directory", path=p, oid="0" * 40, size=0) for p in folders]

    def entry(self, path, content) -> dict:
        "One file of a listing; weights and tables are kept as large files"
        row = dict(type="file", path=path, size=len(content), oid=_oid(content))
        if path.endswith((".safetensors", ".parquet", ".bin")):
            row["lfs"] = dict(oid=hashlib.sha256(content).hexdigest(), size=len(content))
            row["lfs"]["pointerSize"] = 130
        return row

    def etag(self, path) -> str:
        row = self.entry(path, self.files[path])
        return row["lfs"]["oid"] if "lfs" in row else row["oid"]


def _oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        "Keep quiet; `asked` lists the requests"

    def _repository(self, kind, name):
        "The repository, or None after the refusal is sent"
        repository = self.server.hub.repositories.get((kind, name))
        if repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            return None
        return repository

    def _send(self, status, body, headers=(), length=None):
        "Answer with a body; `length` is what is promised, where less is sent"
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def do_GET(self):
        place = urlsplit(self.path)
        path, query = unquote(place.path), parse_qs(place.query)
        self.server.hub.asked.append((self.command, path, self.headers.get("Range")))
        if found := _API.fullmatch(path):
            self._api(*found.groups(), query)
        elif found := _FILE.fullmatch(path):
            self._file(*found.groups())
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_POST = do_GET

    def _api(self, kind, name, what, revision, inside, query):
        "Describe a repository, list a folder, or describe some of its paths"
        form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if (repository := self._repository(kind, name)) is None:
            return
        if what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(repository.entries((inside or "").strip("/"), recursive))
        elif what == "paths-info":
            asked = json.loads(form)["paths"] if form[:1] == "{" else parse_qs(form)["paths"]
            self._json([r for r in repository.entries("", True) if r["path"] in asked])
        else:
            siblings = [dict(rfilename=path) for path in repository.files]
            told = dict(id=name, sha=repository.commit, siblings=siblings, private=False)
            self._json(told | dict(gated=False, disabled=False, tags=[], downloads=0, likes=0))

    def _file(self, dataset, name, revision, path):
        "Send a file, or the rest of it"
        repository = self._repository("datasets" if dataset else "models", name)
        if repository is None:
            return
        commit = {"X-Repo-Commit": repository.commit}
        if path not in repository.files or path in repository.lost:
            self._send(404, b"", commit | {"X-Error-Code": "EntryNotFound"})
            return
        content, headers = repository.files[path], {"Accept-Ranges": "bytes"}
        headers |= commit | {"ETag": f'"{repository.etag(path)}"'}
        if self.command == "GET" and path in repository.slow:
            self.server.hub.ending.wait(60)
            self.close_connection = True
            return
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            rest = content[int(start[1]) :]
            span = {"Content-Range": f"bytes {start[1]}-{len(content) - 1}/{len(content)}"}
            self._send(206, rest, headers | span)
        elif self.command == "GET" and path in repository.cut:
            repository.cut.remove(path)
            self._send(200, content[: len(content) // 2], headers, len(content))
            self.close_connection = True
        else:
            self._send(200, content, headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        "A client that has gone is no error"


class Hub:
    "A running hub: its repositories, its address, and what it was asked"

    def __init__(self, server):
        self.server, self.ending = server, threading.Event()
        self.repositories, self.asked = {}, []  # (kind, name) -> Repository; (verb, path, range)
        self.address = f"http://127.0.0.1:{server.server_port}"

    def add(self, name, files, kind="models", **wrong):
        "Serve a repository: a folder, or path -> bytes"
        if not isinstance(files, dict):
            paths = [p for p in files.rglob("*") if p.is_file()]
            files = {str(p.relative_to(files)): p.read_bytes() for p in paths}
        self.repositories[kind, name] = Repository(dict(files), **wrong)
        return self.repositories[kind, name]

    def environment(self, home) -> dict:
        "What a process needs to meet this hub only, with a cache of its own"
        return dict(
            HF_ENDPOINT=self.address,
            HF_HOME=str(home),
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DOWNLOAD_TIMEOUT="1",
            JUNKDNA_MIRROR="",
        )


@contextmanager
def serve():
    "Run a hub in threads of this process"
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()


def parquet(rows) -> bytes:
    "Write rows as the hub keeps tables"
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def dataset_files(config, splits) -> dict:
    "Lay out a data set as the hub does: one folder a configuration, named in the card"
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    files = {}
    for split, rows in splits.items():
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(rows)
    files["README.md"] = "\n".join([*lines, "---", ""]).encode()
    return files


def roberta_tokenizer(folder, texts):
    "Train a small byte-level tokenizer with RoBERTa's special tokens and save it"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = zip(("bos", "pad", "eos", "unk", "mask"), special, strict=True)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=64, **{f"{k}_token": v for k, v in names}
    ).save_pretrained(folder)


def tiny_roberta(folder, texts):
    "Save a small untrained RoBERTa in the hub's layout"
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    roberta_tokenizer(folder, texts)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = RobertaConfig(vocab_size=500, max_position_embeddings=66, type_vocab_size=1, **size)
    RobertaForMaskedLM(config).save_pretrained(folder)


def tiny_llama(folder, texts):
    "Save a small untrained Llama in the hub's layout, its weights in two files"
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    kept = dict(special_tokens=["<|end|>"], initial_alphabet=letters)
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, **kept))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", bos_token="<|end|>"
    ).save_pretrained(folder)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = LlamaConfig(vocab_size=len(raw.get_vocab()), max_position_embeddings=512, **size)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
