# Two images from one file: a worker with the model libraries that it needs, and a facade without.
#
#   docker build --target worker --build-arg EXTRAS=sklearn -t stream-scorer-worker .
#   docker build --target facade -t stream-scorer-facade .
#
# EXTRAS is a list of extras of pyproject.toml, separated by commas: sklearn, onnx, tensorflow, or
# samples for all of them. Versions are those of constraints.txt.

# --- what the code needs: a layer that changes with its versions only ---------------------------
FROM python:3.11-slim AS libraries
# Constraints by variables: an option does not reach what a build itself needs, setuptools. Which of
# the two variables does depends on pip's version.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/build/constraints.txt \
    PIP_BUILD_CONSTRAINT=/build/constraints.txt
WORKDIR /build
# Without pip: it is of use while building only. The base image's own installs into it.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./
# It tells the version, and nothing else.
COPY stream_scorer/__init__.py stream_scorer/
# A distribution with next to no code brings what the real one depends on.
RUN touch README.md LICENSE \
    && pip --python /opt/venv/bin/python install .
# Declared only here, so that every image shares the step above. TensorFlow's headers, for compiling
# against it, are 290 MB.
ARG EXTRAS=""
RUN pip --python /opt/venv/bin/python install ".${EXTRAS:+[$EXTRAS]}" \
    && rm -rf /opt/venv/lib/python*/site-packages/tensorflow/include

# --- the code itself -----------------------------------------------------------------------------
FROM libraries AS code
COPY README.md LICENSE ./
COPY stream_scorer stream_scorer
COPY http_facade http_facade
RUN pip --python /opt/venv/bin/python install --no-deps --ignore-installed --prefix=/opt/code .
# Files keep the modes of the checkout, which need not be for everybody to read.
COPY samples samples
RUN chmod -R a+rX samples

# --- what runs -----------------------------------------------------------------------------------
FROM python:3.11-slim AS runtime
# The one place it writes to is /tmp, so that the root file system may be read-only.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
    scorer
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=libraries /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv
WORKDIR /app
COPY --from=code /build/samples samples
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
ENTRYPOINT ["stream-scorer"]

FROM runtime AS facade
# Inside a container the address is always this one, whatever a conf says.
ENV SCORER_HOST=0.0.0.0 SCORER_PORT=5005
EXPOSE 5005
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['SCORER_PORT']), timeout=3); \
connection.request('GET', '/readyz'); \
sys.exit(connection.getresponse().status != 200)"]
CMD ["facade"]

FROM runtime AS worker
# There while the worker belongs to its group, and touched every second while its loop moves.
ENV SCORER_WORKER_READY_FILE=/tmp/ready
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD find /tmp/ready -newermt '-30 seconds' | grep -q .
CMD ["worker"]
