"""What to do about a server that refuses a connection: libpq's and the servers' words, and our settings.

With DATABASE_URL the same settings are its parameters sslmode, sslrootcert, sslcert and sslkey.
"""

from __future__ import annotations

import re

_ADVICE = (
    (
        r"certificate verify failed",
        "let DB_SSLROOTCERT name the authority that signed the server's certificate, and see whether this one has expired",
    ),
    (
        r'certificate for "(?P<name>[^"]*)".* does not match host name',
        "let DB_HOST name the server as its certificate does ({name}), or have a certificate made for the name in DB_HOST",
    ),
    (
        r'root certificate file "[^"]*" does not exist|could not read root certificate file',
        "let DB_SSLROOTCERT name the certificate of the server's authority",
    ),
    (r'private key file "(?P<name>[^"]*)" has group or world access', "run `chmod 600 {name}`"),
    (
        r"certificate present, but not private key file|could not load private key file|does not match private key",
        "let DB_SSLKEY name the key of the certificate in DB_SSLCERT",
    ),
    (r"could not read certificate file", "let DB_SSLCERT name the user's certificate"),
    (
        r"requires a valid client certificate",
        "let DB_SSLCERT and DB_SSLKEY name the user's certificate and its key",
    ),
    (
        r"alert (unknown ca|bad certificate|certificate (unknown|expired|required))",
        "let DB_SSLCERT name a certificate which has not expired, from the authority that the server trusts",
    ),
    (
        r"certificate authentication failed",
        "the certificate in DB_SSLCERT is another user's: let DB_USER be the name in it, or use this user's",
    ),
    (
        r"server does not support SSL",
        "switch TLS on in the server, or, where the network can be trusted, set DB_SSLMODE=disable",
    ),
    (
        r"SSL connection required",
        "set DB_SSLMODE=verify-full, and let DB_SSLROOTCERT name the certificate of the server's authority",
    ),
    (
        r"^(?!.*SSL encryption).*no pg_hba\.conf entry .* no encryption",
        "set DB_SSLMODE=verify-full and DB_SSLROOTCERT if the server demands TLS, or let its pg_hba.conf allow this user",
    ),
    (
        r"password authentication failed|no password supplied",
        "check DB_USER and DB_PASSWORD (or DATABASE_URL), or let DB_SSLCERT and DB_SSLKEY name this user's certificate and key",
    ),
    (
        r'database "(?P<name>[^"]*)" does not exist',
        "run `CREATE DATABASE {name}` on the server, or check DB_NAME (or DATABASE_URL)",
    ),
    (
        r'role "(?P<name>[^"]*)" does not exist',
        "check DB_USER (or DATABASE_URL), or run `CREATE ROLE {name} LOGIN` on the server",
    ),
    (
        r"failed to resolve host|could not translate host name",
        "check the name in DB_HOST (or DATABASE_URL), and whether this host can look it up",
    ),
    (
        r"Connection refused|on socket .* No such file or directory",
        "start the server, or check DB_HOST and DB_PORT (or DATABASE_URL); DB_DIALECT=embedded needs no server",
    ),
    (
        r"No route to host|Network is unreachable|timeout expired|the database did not answer in time",
        "check DB_HOST and DB_PORT (or DATABASE_URL), and whether a firewall is in between",
    ),
    (
        r"invalid response to SSL negotiation|expected authentication request from server",
        "what listens there is no PostgreSQL or CockroachDB: check DB_HOST and DB_PORT (or DATABASE_URL)",
    ),
    (
        r"too many clients|too many connections|remaining connection slots",
        "let the server have more connections (max_connections), or run fewer workers",
    ),
    (
        r"permission denied for (table|relation|sequence)|does not have (SELECT|INSERT|UPDATE|DELETE) privilege",
        "as the tables' owner run `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO` the user in DB_USER",
    ),
    (
        r"permission denied for (schema|database)|does not have CREATE privilege",
        "run `continuum migrate` as the database's owner, who can also `GRANT USAGE, CREATE ON SCHEMA public TO` this user",
    ),
    (r"must be owner of", "run `continuum migrate` as the user who made the tables"),
)
_KNOWN = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in _ADVICE)


def advice_on(message: str) -> str:
    """What to do about a failed connection; empty where the message says nothing that only one setting could mend."""
    for pattern, advice in _KNOWN:
        if found := pattern.search(message):
            return advice.format(**found.groupdict())
    return ""
