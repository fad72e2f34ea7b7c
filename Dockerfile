# Curator for GPU hosts. It has not been built where it was written: no Docker daemon was to be had there.
#
#   docker build -t curator .
#   docker run --gpus all --shm-size 2g -v "$PWD:/data" -w /data curator input='shards/*.tar' output=out cluster=cuda
#
# CUDA 13 and its driver (580 or newer) go with RAPIDS 26.10; torch brings its own CUDA libraries.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/curator
COPY . /opt/source
RUN /opt/curator/bin/pip install --no-cache-dir -c /opt/source/constraints.txt '/opt/source[gpu]'

ENV PATH=/opt/curator/bin:$PATH
ENTRYPOINT ["curate"]
