"""Files: verified before they get their name, gone on with where they broke off, truncation is never success."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock
from provider_kairos.errors import HostError, NotFoundError, PermissionHostError, UsageError
from provider_kairos.mesh.streams import StreamEndedError
from provider_kairos.services import dialing, greeting, receive, users
from provider_kairos.services.partfile import PartFile, destination
from provider_kairos.services.reasons import FileNotOffered, NameTaken, PeerNotReached
from provider_kairos.services.receive import FileReceiver, TruncatedError
from provider_kairos.services.records import FILES_BUCKET, USERS_BUCKET, named_value
from provider_kairos.services.send import EDGEVPN_PROTOCOL, PROTOCOL, FileSender
from provider_kairos.services.testing import MemoryNetwork

DATA = os.urandom(1 << 16) * 40  # 2.6 MB: several pieces, more than any window


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(users, "PATIENCE", 0.3)
    monkeypatch.setattr(dialing, "SETTLE", 0.05)
    monkeypatch.setattr(receive, "PAUSE", 0.02)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(DATA)
    path.chmod(0o640)
    return path


@asynccontextmanager
async def network():
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            yield MemoryNetwork(nursery, ManualClock()), nursery
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def offering(net, files, **options):
    sender = FileSender(net.ledger, net.nodes.get("sender") or net.node("sender"), net.clock, files, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        await trio.testing.wait_all_tasks_blocked()
        yield sender
        nursery.cancel_scope.cancel()


async def fetch(net, path, name="image", patience=60):
    """Run a receiver until it is done. Raises its failure."""
    receiver = FileReceiver(net.ledger, net.nodes.get("receiver") or net.node("receiver"), net.clock, name, path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        with trio.move_on_after(patience):
            await receiver.done.wait()
        nursery.cancel_scope.cancel()
    if receiver.failure is not None:
        raise receiver.failure
    return receiver


class RawSender:
    """A node that speaks one of the protocols as ``serve`` says."""

    def __init__(self, net, protocol, serve):
        node = net.node("sender")
        node.set_stream_handler(protocol, serve)
        net.ledger.announce(FILES_BUCKET, "image", named_value(node.peer_id, "image"))


def test_a_file_arrives_verified_with_its_mode(source, tmp_path):
    target = tmp_path / "target"

    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:
            receiver = await fetch(net, target)
            found = receiver.received
            assert found.verified
            assert (found.size, found.sha256, found.resumed_at) == (len(DATA), hashlib.sha256(DATA).hexdigest(), 0)
            while not sender.counters["files_verified"]:  # noqa: ASYNC110 - counters tell nobody
                await trio.sleep(0.01)
            assert net.ledger.buckets[FILES_BUCKET] == {"image": '{"PeerID":"sender","Name":"image"}'}

    trio.run(main)
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o777 == 0o640
    assert not target.with_name("target.part").exists()


def test_an_empty_file_arrives(tmp_path):
    (tmp_path / "empty").touch()

    async def main():
        async with network() as (net, _), offering(net, {"image": tmp_path / "empty"}):
            assert (await fetch(net, tmp_path / "target")).received.size == 0

    trio.run(main)
    assert (tmp_path / "target").read_bytes() == b""


def test_a_part_is_gone_on_with(source, tmp_path):
    target, part = tmp_path / "target", tmp_path / "target.part"
    part.write_bytes(DATA[:1_000_000])

    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:
            found = (await fetch(net, target)).received
            assert found.resumed_at == 1_000_000
            assert sender.counters["files_bytes_out"] == len(DATA) - 1_000_000

    trio.run(main)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("leftover", [b"something else", DATA + b"longer than the file"])
def test_a_part_of_another_file_is_thrown_away(source, tmp_path, leftover):
    target = tmp_path / "target"
    (tmp_path / "target.part").write_bytes(leftover)

    async def main():
        async with network() as (net, _), offering(net, {"image": source}):
            assert (await fetch(net, target)).received.resumed_at == 0

    trio.run(main)
    assert target.read_bytes() == DATA


def test_a_whole_part_costs_no_bytes(source, tmp_path):
    (tmp_path / "target.part").write_bytes(DATA)

    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:
            assert (await fetch(net, tmp_path / "target")).received.resumed_at == len(DATA)
            assert sender.counters["files_bytes_out"] == 0

    trio.run(main)
    assert (tmp_path / "target").read_bytes() == DATA


def test_a_transfer_that_breaks_off_goes_on_by_itself(source, tmp_path):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:

            async def cut():
                while sender.counters["files_bytes_out"] < 600_000:
                    await trio.lowlevel.checkpoint()
                net.cut("sender", "receiver")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut)
                receiver = await fetch(net, tmp_path / "target")
            assert receiver.counters["file_receive_attempts"] == 2
            assert 0 < receiver.received.resumed_at < len(DATA)

    trio.run(main)
    assert (tmp_path / "target").read_bytes() == DATA


def test_a_sender_that_is_not_there_yet_is_waited_for(source, tmp_path):
    async def main():
        async with network() as (net, nursery):
            waiting = []

            async def late():
                await trio.testing.wait_all_tasks_blocked()
                waiting.extend(receiver.waiting())
                await nursery.start(serve)

            async def serve(task_status):
                async with offering(net, {"image": source}):
                    task_status.started()
                    await trio.sleep_forever()

            receiver = FileReceiver(net.ledger, net.node("receiver"), net.clock, "image", tmp_path / "target")
            nursery.start_soon(receiver.run)
            await late()
            await receiver.done.wait()
            assert waiting == [FileNotOffered("image")]
            assert receiver.received is not None
            assert receiver.received.verified

    trio.run(main)


def test_what_the_sender_does_not_offer_is_told(source, tmp_path):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}):
            net.ledger.announce(FILES_BUCKET, "other", named_value(net.nodes["sender"].peer_id, "other"))
            receiver = await fetch_for_a_while(net, tmp_path / "target", "other")
            assert receiver.waiting() == [
                PeerNotReached("file 'other'", net.nodes["sender"].peer_id, "this node offers no file 'other'")
            ]

    trio.run(main)


async def fetch_for_a_while(net, path, name="image"):
    receiver = FileReceiver(net.ledger, net.node("receiver"), net.clock, name, path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        while not receiver.waiting():  # noqa: ASYNC110 - reasons tell nobody when they come
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return receiver


def test_a_file_that_changes_while_it_is_sent_gets_no_name(source, tmp_path):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:
            original = sender._pour

            async def pour(name, stream, transfer):
                source.write_bytes(DATA[::-1])
                sender._pour = original
                return await original(name, stream, transfer)

            sender._pour = pour
            receiver = await fetch(net, tmp_path / "target")
            # the second attempt gets the file as it is then
            assert receiver.counters["file_receive_attempts"] == 2
            assert sender.counters["files_changed"] == 1

    trio.run(main)
    assert (tmp_path / "target").read_bytes() == DATA[::-1]


def test_a_digest_that_is_wrong_twice_is_a_failure_and_nothing_is_left(tmp_path):
    async def lie(_peer, stream):
        await greeting.read(stream)
        await stream.write(greeting.encode({"ok": True, "size": 5, "mode": 0o644, "offset": 0}))
        await stream.write(b"abcde" + greeting.encode({"ok": True, "sha256": "00" * 32}))
        await stream.read()

    async def main():
        async with network() as (net, _):
            RawSender(net, PROTOCOL, lie)
            with pytest.raises(TruncatedError, match="its sender says 0000"):
                await fetch(net, tmp_path / "target")

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": True},
        {"ok": True, "size": -1},
        {"ok": True, "size": 10, "offset": 3},
        {"ok": True, "size": "5"},
        {"ok": True, "size": True},
    ],
)
def test_nonsense_from_a_sender_is_a_reason_and_no_file(tmp_path, answer):
    async def serve(_peer, stream):
        await greeting.read(stream)
        await stream.write(greeting.encode(answer))
        await stream.read()

    async def main():
        async with network() as (net, _):
            RawSender(net, PROTOCOL, serve)
            receiver = await fetch_for_a_while(net, tmp_path / "target")
            assert "an answer without a size" in receiver.waiting()[0].text()

    trio.run(main)
    assert not (tmp_path / "target").exists()


def test_set_uid_does_not_travel(source, tmp_path):
    source.chmod(0o4755)

    async def main():
        async with network() as (net, _), offering(net, {"image": source}):
            await fetch(net, tmp_path / "target")

    trio.run(main)
    assert (tmp_path / "target").stat().st_mode & 0o7777 == 0o755


# --- EdgeVPN's protocol ------------------------------------------------------------------------------------------------


def test_what_an_edgevpn_sender_sends_until_its_end_is_the_file_and_not_verified(tmp_path):
    async def serve(_peer, stream):
        await stream.write(DATA)

    (tmp_path / "target.part").write_bytes(b"left by an earlier attempt")

    async def main():
        async with network() as (net, _):
            RawSender(net, EDGEVPN_PROTOCOL, serve)
            found = (await fetch(net, tmp_path / "target")).received
            assert not found.verified
            assert found.size == len(DATA)

    trio.run(main)
    assert (tmp_path / "target").read_bytes() == DATA
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755 & ~umask


def test_an_edgevpn_sender_that_breaks_off_is_a_failure(tmp_path):
    async def serve(_peer, stream):
        await stream.write(DATA[:100_000])
        await trio.sleep(0.1)
        await stream.reset()

    async def main():
        async with network() as (net, _):
            RawSender(net, EDGEVPN_PROTOCOL, serve)
            with pytest.raises(TruncatedError, match=r"broke off after 100000 bytes"):
                await fetch(net, tmp_path / "target")

    trio.run(main)
    assert not (tmp_path / "target").exists()
    assert (tmp_path / "target.part").stat().st_size == 100_000


async def read_raw(net, protocol=EDGEVPN_PROTOCOL):
    client = net.node("go")
    net.ledger.announce(USERS_BUCKET, "go", "{}")
    stream = await client.open_stream(net.nodes["sender"].peer_id, protocol)
    found = bytearray()
    while data := await stream.read():
        found += data
    return bytes(found)


def test_an_edgevpn_receiver_gets_the_raw_bytes(source):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}):
            assert await read_raw(net) == DATA

    trio.run(main)


def test_of_several_files_an_edgevpn_receiver_gets_the_chosen_one(source, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"other")

    async def main():
        async with network() as (net, _):
            async with offering(net, {"image": source, "other": other}):
                assert set(net.nodes["sender"].handlers) == {PROTOCOL}
            async with offering(net, {"image": source, "other": other}, for_edgevpn="other"):
                assert await read_raw(net) == b"other"

    trio.run(main)


def test_an_edgevpn_receiver_is_reset_when_the_file_is_gone(source):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}):
            source.unlink()
            with pytest.raises(StreamEndedError):
                await read_raw(net)

    trio.run(main)


# --- places ------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_offered_is_an_error_at_once(tmp_path):
    async def main():
        async with network() as (net, _):
            for path, error in ((tmp_path / "none", NotFoundError), (tmp_path, HostError)):
                with pytest.raises(error):
                    FileSender(net.ledger, net.node("sender"), net.clock, {"x": path})

    trio.run(main)


def test_a_taken_name_is_a_reason(source):
    async def main():
        async with network() as (net, _), offering(net, {"image": source}) as sender:
            net.ledger.announce(FILES_BUCKET, "image", named_value(net.node("thief").peer_id, "image"))
            assert sender.waiting() == [NameTaken("file", "image", net.nodes["thief"].peer_id)]

    trio.run(main)


def test_a_name_never_leads_out_of_the_directory(tmp_path):
    assert destination(str(tmp_path / "x"), "../../etc/passwd") == tmp_path / "x"
    assert destination(str(tmp_path), "image.iso") == tmp_path / "image.iso"
    for name in ("../x", "a/b", "..", "."):
        with pytest.raises(UsageError):
            destination(str(tmp_path), name)
    with pytest.raises(NotFoundError):
        destination(str(tmp_path / "none" / "x"), "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError):
        destination(str(tmp_path / "pipe"), "x")


def test_a_part_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "target.part").symlink_to(tmp_path / "victim")
    with pytest.raises(HostError, match="is a link"):
        PartFile(tmp_path / "target")
    assert (tmp_path / "victim").read_text() == "mine"


def test_two_receivers_of_one_file_do_not_mix(tmp_path):
    first = PartFile(tmp_path / "target")
    try:
        with pytest.raises(HostError, match="another command is receiving"):
            PartFile(tmp_path / "target")
    finally:
        first.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, PermissionHostError), (errno.ENOSPC, HostError), (errno.EROFS, HostError)],
)
def test_what_the_disk_refuses_is_an_error_with_a_remedy(tmp_path, monkeypatch, number, kind):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    part = PartFile(tmp_path / "target")
    monkeypatch.setattr(os, "write", refuse)
    try:
        with pytest.raises(kind) as caught:
            part.write(b"x")
        assert caught.value.hint
    finally:
        monkeypatch.undo()
        part.close()
