"""What is production's own: logs, files of the process, caches, temporary files, mirrors, relative paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.change import Derived
from tests.replay.balancer.derive.nginx_site import Site, write


def lines_with(derived: Derived, *names: str) -> list[str]:
    found = [line.strip().rstrip(";") for line in derived.text.split("\n")]
    return [line for line in found if line.split(" ")[0] in names]


def whole(tmp_path: Path, main: str, http: str = "") -> Site:
    return write(tmp_path, f"{main}\nevents {{}}\nhttp {{ {http} }}\n")


def test_the_process_is_the_supervisors(tmp_path: Path) -> None:
    names = ("daemon", "pid", "lock_file", "error_log", "user", "worker_processes", "env")
    expected = ["daemon off", f"lock_file {tmp_path}/shadow/nginx.lock", f"pid {tmp_path}/shadow/nginx.pid"]
    silent = whole(tmp_path, "")
    log = f"error_log {tmp_path}/shadow/error.log"
    assert sorted(lines_with(silent.derive(), *names)) == sorted([*expected, log])
    said = whole(
        tmp_path, "user www-data;\nworker_processes 3;\nenv TZ;\ndaemon on;\npid /run/a.pid;\nlock_file /run/l;"
    )
    assert sorted(lines_with(said.derive(), *names)) == sorted(
        [*expected, log, "user www-data", "worker_processes 3", "env TZ"]
    )


def test_logs(tmp_path: Path) -> None:
    main = "error_log /var/log/e.log warn;\nerror_log syslog:server=10.0.0.1 crit;\n"
    http = """
        access_log /var/log/a.log; access_log syslog:server=10.0.0.1;
        server { listen 80; error_log stderr debug; location / { access_log /var/log/l.log main buffer=1k if=$x; } }
        """
    log = f"{tmp_path}/shadow/error.log"
    assert lines_with(whole(tmp_path, main, http).derive(), "error_log", "access_log") == [
        f"error_log {log} warn",
        "access_log off",
        f"error_log {log} debug",
        "access_log off",
    ]
    assert lines_with(whole(tmp_path, "").derive(), "access_log") == ["access_log off"]


def test_access_logs_may_stay(tmp_path: Path) -> None:
    site = whole(tmp_path, "", "access_log /var/log/a.log;")
    assert lines_with(site.derive(keep=["log"]), "access_log") == ["access_log /var/log/a.log"]


def test_caches_and_temporary_files(tmp_path: Path) -> None:
    http = """
        proxy_cache_path /var/cache/p levels=1:2 keys_zone=p:1m;
        fastcgi_cache_path /var/cache/p/f keys_zone=f.1:1m;
        proxy_temp_path /var/tmp/p 1 2;
        server {
            listen 80;
            location /a { proxy_temp_path /var/tmp/p 1 2; }
            location /b { client_body_temp_path /var/b; }
        }
        """
    derived = whole(tmp_path, "", http).derive()
    run = f"{tmp_path}/shadow"
    names = [f"{module}_temp_path" for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    assert lines_with(derived, "proxy_cache_path", "fastcgi_cache_path", *names) == [
        f"client_body_temp_path {run}/client_body_temp",
        f"fastcgi_temp_path {run}/fastcgi_temp",
        f"uwsgi_temp_path {run}/uwsgi_temp",
        f"scgi_temp_path {run}/scgi_temp",
        f"proxy_cache_path {run}/proxy_cache-p levels=1:2 keys_zone=p:1m",
        f"fastcgi_cache_path {run}/fastcgi_cache-f.1 keys_zone=f.1:1m",
        f"proxy_temp_path {run}/proxy_temp-1 1 2",
        f"proxy_temp_path {run}/proxy_temp-1 1 2",
        f"client_body_temp_path {run}/client_body_temp-2",
    ]


def test_what_would_happen_twice(tmp_path: Path) -> None:
    http = "server { listen 80; location / { mirror /m; mirror_request_body off; proxy_store on; auth_request /a; } }"
    derived = whole(tmp_path, "google_perftools_profiles /var/p;\nmail { server { listen 25; } }", http).derive()
    names = ("google_perftools_profiles", "mail", "mirror", "mirror_request_body", "proxy_store", "auth_request")
    assert lines_with(derived, *names) == ["proxy_store off", "auth_request /a"]
    assert derived.notes == (f"{tmp_path}/nginx.conf:2: mail is taken out: only HTTP is replayed",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssl_certificate a.pem", "ssl_certificate {dir}/a.pem"),
        ("ssl_certificate certs/$ssl_server_name.pem", "ssl_certificate {dir}/certs/$ssl_server_name.pem"),
        ("ssl_certificate /etc/a.pem", "ssl_certificate /etc/a.pem"),
        ("ssl_certificate data:$cert", "ssl_certificate data:$cert"),
        ("ssl_certificate $cert", "ssl_certificate $cert"),
        ("ssl_certificate_key engine:e:k", "ssl_certificate_key engine:e:k"),
        ("ssl_dhparam dh.pem", "ssl_dhparam {dir}/dh.pem"),
        ("proxy_ssl_trusted_certificate ca.pem", "proxy_ssl_trusted_certificate {dir}/ca.pem"),
        ('proxy_ssl_certificate ""', "proxy_ssl_certificate ''"),
        ("auth_basic_user_file users", "auth_basic_user_file {dir}/users"),
        ("xslt_stylesheet a.xslt", "xslt_stylesheet {dir}/a.xslt"),
        ("root html", "root html"),
        ("ssl_stapling on", "ssl_stapling on"),
    ],
)
def test_relative_paths(text: str, expected: str, tmp_path: Path) -> None:
    derived = whole(tmp_path, "", f"server {{ listen 80; {text}; }}").derive()
    assert lines_with(derived, text.split(" ")[0]) == [expected.replace("{dir}", str(tmp_path))]


def test_what_a_person_shall_know(tmp_path: Path) -> None:
    http = "server { listen 80; dav_methods PUT; proxy_bind 10.0.0.1; ssl_ocsp off; }"
    assert [note.split(": ")[1] for note in whole(tmp_path, "", http).derive().notes] == ["dav_methods", "proxy_bind"]
