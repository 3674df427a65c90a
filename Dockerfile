# The image that tasks run in unless they name another: Python 3, pip, sh, certificate authorities, and a non-root user that owns /workspace.
# scripts/build-image.sh makes the same without any image registry.
#
#   docker build -t justin308/hivemind-worker:latest .
#
# The base is any Debian or Ubuntu image: --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=debian:12-slim
FROM ${BASE_IMAGE}

# pip may write where it is told to, and a task has no use for programs that gain rights.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip ca-certificates \
    && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
    && echo 'task:*:1000:1000:task:/workspace:/bin/sh' >>/etc/passwd \
    && echo 'task:x:1000:' >>/etc/group \
    && install -d -m 0755 -o 1000 -g 1000 /workspace

ENV PYTHONUNBUFFERED=1 LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /workspace
USER 1000:1000
CMD ["python3"]
