# The endpoint in an image: no weights but the embedded ones, no root. docs/deploy.md tells how it is built and run.
#   docker build -t dovetail .                                                                        for a CPU
#   docker build -t dovetail:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .    for an NVIDIA GPU
# PyTorch's wheels for CUDA bring its libraries along, so both take the same base; the host lends the driver.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dovetail
# PyTorch by itself first: it is the largest layer, and a change of Dovetail does not touch it.
RUN /opt/dovetail/bin/pip install --index-url "${TORCH_INDEX}" "torch>=2.11,<2.14"
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/dovetail/bin/pip install ".${EXTRAS}"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="dovetail" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin dovetail \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/dovetail /opt/dovetail
ENV PATH=/opt/dovetail/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    DOVETAIL_HOME=/data HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["dovetail"]
CMD ["serve", "embedded", "--host", "0.0.0.0", "--port", "8000"]
