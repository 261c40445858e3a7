"""The object door against a store: conditions, versions, keys, and what its errors say."""
import re
import sys
import threading
import traceback
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from daedalus_etl.core.errors import ConfigError, InputChangedError, InputNotFoundError, MissingExtraError, StorageError
from daedalus_etl.storage import buckets, objects
from daedalus_etl.storage.guarantees import probe
from daedalus_etl.storage.objects import (
    AlreadyThere, ObjectInfo, Replaced, create, fetch, head, is_url, join_url, list_folder, put, read, remove, replace,
    split_url, walk)
from daedalus_etl.storage.urls import Unreachable
from objects import CANARY, Proxy, every_second_put, use


@pytest.fixture
def hasty(monkeypatch):
    "Few retries, so that failing takes no time."
    monkeypatch.setattr(buckets, "RETRIES", 1)
    monkeypatch.setattr(objects, "_STORES", {})


def test_of_two_creations_the_first_holds(bucket):
    one = create(f"{bucket}/lake/a.bin", b"first")
    with pytest.raises(AlreadyThere, match="a.bin"): create(one.url, b"second")
    assert read(one.url) == b"first"
    assert head(one.url) == one


def test_a_replacement_needs_the_version_that_was_seen(bucket):
    one = create(f"{bucket}/lake/a.bin", b"first")
    two = replace(one.url, b"second", one)
    with pytest.raises(Replaced): replace(one.url, b"third", one)
    assert read(one.url) == b"second"
    remove(one.url)
    with pytest.raises(Replaced): replace(one.url, b"third", two)
    assert head(one.url) is None


def test_racing_writers_have_one_winner(bucket):
    barrier = threading.Barrier(8)
    def race(i):
        barrier.wait()
        try: return create(f"{bucket}/race", b"%d" % i)
        except AlreadyThere: return None
    with ThreadPoolExecutor(8) as pool: won = list(pool.map(race, range(8)))
    [winner] = [i for i, w in enumerate(won) if w]
    assert read(f"{bucket}/race") == b"%d" % winner


def test_a_file_is_put_as_it_is(bucket, tmp_path):
    for name, data in (("empty", b""), ("small", b"x" * 100), ("large", bytes(range(256)) * 40_000)):
        path = tmp_path / name
        path.write_bytes(data)
        info = create(f"{bucket}/{name}", path)
        assert (info.size, read(info.url)) == (len(data), data)
        fetch(head(info.url), tmp_path / f"{name}.back")
        assert (tmp_path / f"{name}.back").read_bytes() == data


def test_a_file_over_the_limit_is_refused(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "MAX_PUT_BYTES", 10)
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(StorageError, match="11 bytes are more"): create(f"{bucket}/a", tmp_path / "a")
    assert head(f"{bucket}/a") is None


@pytest.mark.parametrize("store", ["bucket", "lax_bucket"])
def test_what_was_replaced_is_not_fetched(store, request, tmp_path):
    url = request.getfixturevalue(store)
    one = put(f"{url}/a", b"first")
    put(one.url, b"other")
    with pytest.raises(InputChangedError, match=one.url): fetch(one, tmp_path / "a")
    remove(one.url)
    with pytest.raises(InputChangedError, match=one.url): fetch(one, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bare_tags(store_server, bucket, monkeypatch):
    "A bucket on a store that lists tags without the quotes which all its other answers have, as Azure does."
    quote = rb'(?:"|&quot;|&#34;)'
    def edit(method, path, body): return re.sub(rb"<ETag>" + quote + rb"(.*?)" + quote + rb"<", rb"<ETag>\1<", body)
    with Proxy(store_server, edit=edit) as proxy:
        use(monkeypatch, proxy.endpoint)
        yield bucket


def test_a_tag_is_the_same_in_a_listing_and_in_an_answer(bare_tags, tmp_path):
    one = create(f"{bare_tags}/lake/a", b"first")
    [listed] = list_folder(f"{bare_tags}/lake")[1]
    assert one == listed == head(one.url) == next(walk(bare_tags)) and listed.etag.startswith('"')
    fetch(listed, tmp_path / "a")
    replace(one.url, b"other", listed)
    with pytest.raises(InputChangedError): fetch(listed, tmp_path / "b")
    with pytest.raises(Replaced): replace(one.url, b"third", listed)
    assert probe(f"{bare_tags}/lake").list_after_put


@pytest.mark.parametrize("key", ["symbol=BTC%2FUSDT/part-0.parquet", "a b/c d.bin", "ä€/x+y=z", "a#b?c*[d]"])
def test_keys_are_taken_as_they_stand(bucket, key):
    info = create(f"{bucket}/lake/{key}", b"x")
    assert [o.url for o in walk(f"{bucket}/lake")] == [info.url] == [f"{bucket}/lake/{key}"]
    assert list_folder(info.url.rpartition("/")[0])[1] == [info]
    assert read(info.url) == b"x"
    remove(info.url)
    assert head(info.url) is None


def test_a_listing_is_one_folder(bucket):
    for key in ("lake/b/x", "lake/a", "lake/b/y", "lake/c/d/e", "lakes/z"): put(f"{bucket}/{key}", b"1")
    put(f"{bucket}/lake/b/x/below", b"1")                    # a key may be an object and a folder at once
    folders, found = list_folder(f"{bucket}/lake/")
    assert (folders, [o.name for o in found]) == ([f"{bucket}/lake/b", f"{bucket}/lake/c"], ["a"])
    folders, found = list_folder(f"{bucket}/lake/b")
    assert (folders, [o.name for o in found]) == ([f"{bucket}/lake/b/x"], ["x", "y"])
    assert list_folder(f"{bucket}/nothing") == ([], []) == (list(walk(f"{bucket}/nothing")), [])
    assert len(list(walk(bucket))) == 6


def test_empty_objects_that_stand_for_folders_are_no_objects(bucket, store_server):
    put(f"{bucket}/lake/b/x", b"1")
    for key in ("lake/", "lake/b/", "lake/c/"):
        urllib.request.urlopen(urllib.request.Request(f"{store_server}/{bucket[5:]}/{key}", method="PUT", data=b""))
    assert list_folder(f"{bucket}/lake") == ([f"{bucket}/lake/b", f"{bucket}/lake/c"], [])
    assert [o.name for o in list_folder(f"{bucket}/lake/b")[1]] == ["x"]
    assert list_folder(f"{bucket}/lake/c") == ([], [])


def test_parts_of_an_object(bucket):
    info = put(f"{bucket}/a", b"0123456789")
    assert [read(info.url, *at) for at in ((2, 3), (8,), (0, 0), (5, 99))] == [b"234", b"89", b"", b"56789"]
    with pytest.raises(InputNotFoundError): read(f"{bucket}/b")


# ---- what errors say

OPERATIONS = {"list": lambda u: list_folder(u), "walk": lambda u: list(walk(u)), "head": lambda u: head(f"{u}/a"),
              "read": lambda u: read(f"{u}/a"), "create": lambda u: create(f"{u}/a", b"x"),
              "put": lambda u: put(f"{u}/a", b"x")}


def told(error: BaseException) -> str:
    "All that a reader of the error, or of its traceback, could see; it must hold no secret."
    text = f"{error} {error!r} {''.join(traceback.format_exception(error))}"
    assert CANARY not in text
    return str(error)


@pytest.mark.parametrize("what", OPERATIONS)
def test_a_missing_bucket(store_server, monkeypatch, what):
    use(monkeypatch, store_server)
    with pytest.raises(StorageError) as e: OPERATIONS[what]("s3://no-such-bucket-here")
    assert "there is no bucket s3://no-such-bucket-here" in told(e.value)
    assert "AWS_ENDPOINT_URL" in told(e.value)


@pytest.mark.parametrize("what", OPERATIONS)
def test_a_wrong_key(bucket, store_server, monkeypatch, what):
    said = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{CANARY}</Message><Token>{CANARY}</Token></Error>"
    with Proxy(store_server, answer=lambda *_: (403, said.encode())) as proxy:
        use(monkeypatch, proxy.endpoint)
        with pytest.raises(StorageError) as e: OPERATIONS[what](bucket)
    assert "403 Forbidden" in told(e.value)
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in told(e.value)
    assert len(proxy.seen) == 1                                      # what is refused is not asked for again


def test_no_key_at_all(bucket, monkeypatch, hasty):
    with Proxy("http://127.0.0.1:9", answer=lambda *_: (404, b"")) as proxy:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.endpoint)  # where a cloud's machine would find its keys
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"): monkeypatch.delenv(name)
        with pytest.raises(StorageError) as e: list_folder(bucket)
    assert "AWS_ACCESS_KEY_ID" in told(e.value)


def test_an_endpoint_that_nobody_answers(bucket, monkeypatch, hasty):
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="no answer") as e: head(f"{bucket}/a")
    assert "AWS_ENDPOINT_URL" in told(e.value)


def test_plain_http_must_be_allowed(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP"): head(f"{bucket}/a")


def test_a_store_that_fails_for_a_moment_is_asked_again(bucket, store_server, monkeypatch):
    left = [(503, b"<Error><Code>SlowDown</Code></Error>")] * 2
    with Proxy(store_server, answer=lambda *_: left.pop() if left else None) as proxy:
        use(monkeypatch, proxy.endpoint)
        assert create(f"{bucket}/a", b"x").size == 1
    assert [m for m, _ in proxy.seen] == ["PUT"] * 3


def test_a_creation_whose_answer_is_lost_is_found_there(bucket, store_server, monkeypatch):
    lost = [1]
    with Proxy(store_server, loses=lambda method, _: bool(lost) and lost.pop()) as proxy:
        use(monkeypatch, proxy.endpoint)
        with pytest.raises(AlreadyThere): create(f"{bucket}/a", b"x")        # the second try met the first one's object
        assert read(f"{bucket}/a") == b"x"


def test_a_store_that_goes_on_failing(bucket, store_server, monkeypatch, hasty):
    with Proxy(store_server, answer=lambda *_: (503, b"<Error><Code>SlowDown</Code></Error>")) as proxy:
        use(monkeypatch, proxy.endpoint)
        with pytest.raises(Unreachable, match="503.*SlowDown"): create(f"{bucket}/a", b"x")
    assert len(proxy.seen) == 2


def test_keys_without_a_name_are_refused_by_name(bucket, store_server):
    urllib.request.urlopen(urllib.request.Request(f"{store_server}/{bucket[5:]}/a//b", method="PUT", data=b""))
    with pytest.raises(StorageError, match="empty parts"): list(walk(bucket))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setattr(objects, "_STORES", {})
    with pytest.raises(MissingExtraError, match=r"daedalus_etl\[s3\]"): head("s3://lake/a")


def test_addresses():
    assert [is_url(u) for u in ("s3://a/b", "S3://a", "file:///a", "/a", "C://a", "memory://a")] == [1, 1, 0, 0, 0, 1]
    assert join_url("s3://a/", "b/", "", "c=%2F") == "s3://a/b/c=%2F"
    with pytest.raises(ConfigError): head("s3:///a")
    with pytest.raises(ConfigError, match="password") as e: head("sftp://me:hunter22@host/a")
    assert "hunter22" not in str(e.value)
    for url in (f"s3://AKIAX:ab/cd{CANARY}@bucket/lake", f"gs://me:{CANARY}/x@bucket", f"s3://me@{CANARY}@bucket/lake",
                f"s3://AKIAX:{CANARY}/lake", f"az://lake/a?sv=1&sig={CANARY}", f"s3://b/a?X-Amz-Signature={CANARY}",
                f"s3://b?X-Amz-Security-Token={CANARY}"):
        with pytest.raises(ConfigError, match="in a URL") as e: split_url(url)
        assert CANARY not in told(e.value) and CANARY not in repr(e.value.path)
    assert split_url("abfss://lake@account.dfs.core.windows.net/a")[1] == "a"
    assert split_url("s3://b/what?is=this&a:b@c")[1] == "what?is=this&a:b@c"
    assert ObjectInfo("s3://a", 1, "x") < ObjectInfo("s3://b", 0, "")


# ---- what a store keeps

def test_a_store_with_conditions(bucket):
    found = probe(f"{bucket}/lake")
    assert (found.create_only, found.compare_and_swap, found.one_winner, found.conditional) == (True,) * 4
    assert (found.read_after_put, found.list_after_put, found.ranges) == (True,) * 3
    assert found.put_ms > 0
    assert list(walk(bucket)) == []


@pytest.mark.parametrize("lax", [False, True])
def test_a_trial_whose_answers_are_lost_finds_the_same(bucket, store_server, monkeypatch, lax):
    met = set()
    def loses(method, path): return method == "PUT" and path not in met and not met.add(path)    # the first at each key
    with Proxy(store_server, strip=("if-match", "if-none-match") if lax else (), loses=loses) as proxy:
        use(monkeypatch, proxy.endpoint)
        found = probe(bucket)
    assert (found.create_only, found.compare_and_swap, found.one_winner) == (not lax,) * 3
    assert any("/swapped" in p for p in met) and any("/race" in p for p in met) is not lax


def test_a_replacement_and_a_race_whose_answers_are_lost(bucket, store_server, monkeypatch):
    with Proxy(store_server, loses=every_second_put()) as proxy:
        use(monkeypatch, proxy.endpoint)
        assert all(probe(bucket).conditional for _ in range(2))


def test_a_store_that_ignores_conditions_is_found_out(lax_bucket):
    found = probe(f"{lax_bucket}/lake")
    assert (found.create_only, found.compare_and_swap, found.one_winner, found.conditional) == (False,) * 4
    assert (found.read_after_put, found.list_after_put, found.ranges) == (True,) * 3
    assert list(walk(lax_bucket)) == []


def test_a_store_that_checks_creations_only(store_server, bucket, monkeypatch):
    with Proxy(store_server, strip=("if-match",)) as proxy:
        use(monkeypatch, proxy.endpoint)
        found = probe(bucket)
    assert (found.create_only, found.compare_and_swap, found.conditional) == (True, False, False)
