#!/usr/bin/env python3
"""Reads what `buildah inspect --type image` says of an image on stdin.

    image_config.py check VERSION REVISION        fails where labels, user, ports or stop signal are wrong
    image_config.py health                        prints the HEALTHCHECK's command, one word a line
    image_config.py user                          prints the number of the user
    image_config.py runc ROOTFS FLAG_FILE [ARGUMENT...]
                                                  prints runc's config.json for one container

The container runs as a hardened host would run it: the image's own user, environment and entrypoint
with ARGUMENTs behind it, a read-only root, no capabilities, no new privileges, processes of its own.
The network is this machine's, so that its ports can be called. FLAG_FILE is mounted over the image's
flag file; '' leaves that as it is.
"""
import json
import sys

FLAG_FILE = "/etc/flashbias/flashbias-server.flags"


def refuse(message):
    sys.exit(f"image_config.py: {message}")


def user_of(config):
    user, _, group = config.get("User", "").partition(":")
    if not user.isdigit() or not group.isdigit() or int(user) == 0:
        refuse(f"the user is '{config.get('User', '')}'; accepted: UID:GID, numbers, UID not 0")
    return {"uid": int(user), "gid": int(group)}


def health_of(config):
    test = config.get("Healthcheck", {}).get("Test") or []
    if test[:1] != ["CMD"] or len(test) < 2:
        refuse(f"the HEALTHCHECK is {test}; accepted: CMD [\"PROGRAM\", ...]")
    return test[1:]


def check(config, version, revision):
    user_of(config)
    health_of(config)
    labels = config.get("Labels") or {}
    wanted = {"title": "flashbias", "version": version, "revision": revision}
    for name, value in wanted.items():
        found = labels.get("org.opencontainers.image." + name)
        if found != value:
            refuse(f"the label {name} is '{found}', not '{value}'")
    if not labels.get("org.opencontainers.image.description"):
        refuse("the label description is missing")
    if config.get("StopSignal") != "SIGTERM":
        refuse(f"the stop signal is '{config.get('StopSignal')}', not SIGTERM")
    if sorted(config.get("ExposedPorts") or {}) != ["8471/tcp", "8472/tcp"]:
        refuse(f"the exposed ports are {config.get('ExposedPorts')}, not 8471 and 8472")


def mount(target, kind, *options, source=None):
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


def runc_config(config, rootfs, flag_file, arguments):
    mounts = [
        mount("/proc", "proc"),
        mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]
    if flag_file:
        mounts.append(mount(FLAG_FILE, "bind", "bind", "ro", source=flag_file))
    return {
        "ociVersion": "1.0.2",
        "root": {"path": rootfs, "readonly": True},
        "process": {
            "user": user_of(config),
            "args": (config.get("Entrypoint") or []) + (arguments or config.get("Cmd") or []),
            "env": config.get("Env") or [],
            "cwd": config.get("WorkingDir") or "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def main(action, *arguments):
    config = json.load(sys.stdin)["Docker"]["config"]
    if action == "check":
        check(config, *arguments)
    elif action == "health":
        print("\n".join(health_of(config)))
    elif action == "user":
        print(user_of(config)["uid"])
    elif action == "runc":
        rootfs, flag_file, *rest = arguments
        json.dump(runc_config(config, rootfs, flag_file, rest), sys.stdout, indent=1)
    else:
        refuse(f"unknown action '{action}'")


main(*sys.argv[1:])
