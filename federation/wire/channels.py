"""How every process reaches the director: one gRPC channel, with the same options on both ends.

The engine sets the size of messages and nothing else (transport/grpc/grpc_channel_options.py). With gRPC's own defaults
a network that stops without a word, as a pulled cable or a forgetful firewall does, hurts in three ways: whoever waits
for an answer waits for ever; a transfer goes on only when TCP happens to try again, after pauses that double, so as
late again as the cut was long; and an envoy that has lost its director tries it at last only once in two minutes.

No call has a deadline: a large model on a slow link takes as long as it takes. Only silence ends a connection. The call
then fails with one of `CONNECTION_LOST`, and whoever made it makes it again.
"""

from pathlib import Path

import grpc

from federation.settings import Certificates

CONNECTION_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call ends with when the network failed, or the director was killed or stopped, in the middle of it."""

MESSAGE_BYTES = 16 * 2**20
"""The largest single message that a director takes."""

CONNECT_SECONDS = 5
"""How long one attempt to connect may take."""

_SILENCE = [
    # After 10 s without a byte from the other end, ask whether it is there. Routers at home forget a quiet connection
    # after a minute or more, and a ping of 17 bytes costs nothing.
    ("grpc.keepalive_time_ms", 10_000),
    # Any byte within another 10 s is an answer, not only the ping's own, so a full link does not look dead: the other
    # end's permission to send more arrives all the time. The same 10 s are TCP_USER_TIMEOUT: what was sent must be
    # confirmed by then. A link of 1 Mbit/s behind a full buffer of a megabyte, the worst to be expected, answers after
    # 8 s. So a cut of up to 10 s passes unnoticed, and a longer one ends the connection 10 s (sending) to 20 s
    # (receiving) after it began, early enough for new connections to be tried while the link is still down.
    ("grpc.keepalive_timeout_ms", 10_000),
    # An envoy between experiments and a notebook between cells are to notice as well.
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC stops after two pings with no data in between; training takes longer than that.
    ("grpc.http2.max_pings_without_data", 0),
]

CLIENT_OPTIONS = [
    # As large as the engine makes them (its grpc_channel_options.py): what comes is the director's own.
    ("grpc.max_receive_message_length", 2**30),
    ("grpc.max_send_message_length", 2**30),
    ("grpc.max_metadata_size", 32 * 2**20),
    *_SILENCE,
    # Pauses between attempts to connect: 0.5 s, then up to 2 s (gRPC: 1 s up to 120 s), so that a link that is back is
    # used within about 2 s. A few attempts a minute from each site are no load.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # How long one attempt may take (gRPC: 20 s; it is not a pause, in spite of its name). TCP, TLS and HTTP/2 need four
    # round trips: 2.4 s by satellite, with room for a lost packet or two. An attempt that began while the link was down
    # is not in the way for longer than this.
    ("grpc.min_reconnect_backoff_ms", 1_000 * CONNECT_SECONDS),
]

SERVER_OPTIONS = [
    # Whatever is larger than a chunk of 2 MiB comes as a stream; metadata are names and digests.
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # what is sent is the director's own
    ("grpc.max_metadata_size", 64 * 1024),
    # Calls that wait to be looked at. Beyond 1,000 (gRPC's own limit) calls are cancelled at random; when an experiment
    # begins, or a director is back, a thousand sites have two or three each.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    # What of a message may come before anybody reads it: 64 KiB, and not the megabytes that gRPC finds good for a fast
    # link. Of a message that is being read, all may come.
    ("grpc.http2.bdp_probe", 0),
    # Every connection has memory ready for as much as came at a time before, up to 4 MiB, and keeps it.
    ("grpc.experimental.tcp_max_read_chunk_size", 64 * 1024),
    # Calls at a time on one connection; a site has four or five.
    ("grpc.max_concurrent_streams", 256),
    *_SILENCE,
    # gRPC's server hangs up on a client that pings more often than every five minutes.
    ("grpc.http2.max_ping_strikes", 0),
    # Two directors on one port: the second is to be told, not to share it.
    ("grpc.so_reuseport", 0),
]


def connect(address: str, certificates: Certificates) -> grpc.Channel:
    """A channel to the director at `host:port`, with mutual TLS where there are certificates; connects when used."""
    if not certificates.tls:
        return grpc.insecure_channel(address, options=CLIENT_OPTIONS)
    paths = certificates.root_certificate, certificates.private_key, certificates.certificate
    credentials = grpc.ssl_channel_credentials(*(Path(path).read_bytes() for path in paths if path))
    return grpc.secure_channel(address, credentials, options=CLIENT_OPTIONS)
