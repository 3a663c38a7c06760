# syntax=docker/dockerfile:1
# The app, offline and without rights: `make image`. Stages: base, dependencies, templates, wheel,
# production (the default is the last) and test.
#
#   BASE_IMAGE     Debian with Python 3.11 (bookworm, the default) or 3.13 (trixie)
#   TORCH_BACKEND  which build of torch: cpu (default), or one with CUDA such as cu130
#   TEMPLATES      TemplateFlow templates to ship besides the default one, which a dependency brings
#   VERSION        of the app, for the label and the package; `make image` asks git
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/opt/perfdeficit/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1


FROM base AS dependencies
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-pip python3-venv
RUN python3 -m venv --without-pip /opt/perfdeficit
# Bytecode is made once, at the end: that of pip holds the times of the sources, which differ from
# build to build and would be wrong where the builder sets the times of the layers.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 \
    PIP_PYTHON=/opt/perfdeficit/bin/python
WORKDIR /build
# The lock comes first, and torch, which is most of the image, before all: a change of the code
# then rebuilds neither.
COPY constraints.txt .
ARG TORCH_BACKEND=cpu
RUN pip install --constraint constraints.txt \
        --extra-index-url "https://download.pytorch.org/whl/${TORCH_BACKEND}" torch \
    && rm -rf /opt/perfdeficit/lib/python3*/site-packages/torch/include
COPY pyproject.toml .
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt


FROM dependencies AS templates
ARG TEMPLATES="MNI152NLin2009cAsym"
COPY scripts/fetch_templates.py .
RUN TEMPLATEFLOW_HOME=/opt/templateflow python fetch_templates.py --if-reachable ${TEMPLATES}


FROM dependencies AS wheel
ARG VERSION=0.1.0.dev0
COPY LICENSE README.md ./
COPY bids_perfdeficit bids_perfdeficit
RUN SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION} pip wheel --no-deps --wheel-dir dist . \
    && pip install --no-deps dist/*.whl
# Some packages hold files that are not of this Python, which fail.
RUN PYTHONHASHSEED=0 python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        /opt/perfdeficit/lib || true


FROM base AS production
# Of the commit, from `make image`: useradd writes a date.
ARG SOURCE_DATE_EPOCH
# A user of no rights. Nothing in the image is its own, so that any other id does as well.
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin perfdeficit
COPY --from=templates /opt/templateflow /opt/templateflow
COPY --from=wheel /opt/perfdeficit /opt/perfdeficit
# Nothing is written but to OUTPUT_DIR, the working folder and /tmp; nothing is ever asked of a
# network. TemplateFlow would fill an empty home; this one is not empty and cannot be written.
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NIPYPE_CONFIG_DIR=/tmp/nipype \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TEMPLATEFLOW_AUTOUPDATE=off \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Kernels for a GPU are compiled at the first use, which takes a C compiler and Python's headers.
ARG TORCH_BACKEND=cpu
RUN test "${TORCH_BACKEND}" = cpu || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev libpython3-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*; }
ARG VERSION=0.1.0.dev0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bids_perfdeficit" \
      org.opencontainers.image.description="Computed perfusion from routine CT and CT angiography of stroke. Research only; not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER perfdeficit
WORKDIR /tmp
ENTRYPOINT ["bids_perfdeficit"]


FROM wheel AS test
# The tests of the installed package, in the environment that ships: `make image-test` runs the
# production image itself, this target the suite.
RUN apt-get install -y -qq --no-install-recommends git \
    && pip install --constraint constraints.txt "$(echo dist/*.whl)[test]"
COPY tests tests
COPY scripts scripts
ENV HOME=/tmp NO_ET=1 TEMPLATEFLOW_HOME=/opt/templateflow
COPY --from=templates /opt/templateflow /opt/templateflow
RUN rm -rf bids_perfdeficit
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]


# The last stage is what a plain `docker build .` makes.
FROM production
