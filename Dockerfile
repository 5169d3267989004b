# Sluice in a container. The first stage has a compiler and builds the encoder and the Python environment; the second
# one contains only what the server needs. A database is always configured, so requirements-embedded.txt is left out.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build

# No versions: Debian keeps only the latest one of each package, and the final image contains none of them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY requirements.txt requirements-build.txt ./

# Every file has a hash of the lock, and none is built here: a build would fetch tools that no hash covers. What builds the
# encoder is installed here. The server's own requirements are installed in /opt/sluice, without pip.
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
        --requirement requirements-build.txt
RUN python -m venv --without-pip /opt/sluice \
    && pip --python /opt/sluice/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes \
        --only-binary :all: --requirement requirements.txt \
    && pip --python /opt/sluice/bin/python check

COPY setup.py pyproject.toml ./
COPY server ./server

# setup.py treats the extension as optional. The image needs it: the second command fails without it.
RUN python setup.py --quiet build_ext --inplace \
    && python -c 'import server.encode._encode' \
    && rm -f server/encode/_encode.c \
    && python -m compileall -q --invalidation-mode unchecked-hash server

FROM ${PYTHON_IMAGE}

# A fixed user id, so that the owner of a mounted folder can be set before the first start.
RUN groupadd --gid 10001 sluice \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sluice \
    && install --directory --owner=10001 --group=10001 --mode=0750 /exports

COPY --from=build /opt/sluice /opt/sluice
COPY --from=build /build/server /srv/sluice/server

ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    API_HOST=0.0.0.0 \
    API_PORT=8080 \
    EXPORT_STORAGE_PATH=/exports

WORKDIR /srv/sluice
USER 10001:10001
VOLUME /exports
EXPOSE 8080
STOPSIGNAL SIGTERM

# http.client, because urllib would use a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['API_PORT']), timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]

CMD ["python", "-m", "server", "serve"]
