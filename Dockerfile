# For processors:        docker build --tag medals-rt .
# The HTTP service:      docker build --target serve --tag medals-rt-serve .   (docs/serve.md)
# With a model baked in: docker build --tag medals-rt --build-arg BUNDLE=engines/medal-s .
# With a model mounted:  docker run --volume "$PWD/engines/medal-s:/opt/bundle:ro" ... medals-rt
#
# The challenge's call, without network:
#   docker run --rm --network none --volume "$PWD/inputs:/workspace/inputs:ro" \
#     --volume "$PWD/outputs:/workspace/outputs" medals-rt sh predict.sh
FROM python:3.11-slim AS base

# Extras of the package: "cpu,formats,dicom" reads scans from scanners too.
ARG EXTRAS=cpu
COPY pyproject.toml constraints.txt README.md LICENSE /opt/medals-rt/
COPY medals_rt /opt/medals-rt/medals_rt
COPY medals_export /opt/medals-rt/medals_export
COPY medals_serve /opt/medals-rt/medals_serve
COPY engines/recipes /opt/medals-rt/engines/recipes
COPY engines/demo /opt/medals-rt/engines/demo
RUN pip install --no-cache-dir --constraint /opt/medals-rt/constraints.txt \
      "/opt/medals-rt[${EXTRAS}]" \
 && medals-rt version

ARG BUNDLE=engines/demo
COPY ${BUNDLE} /opt/bundle
ENV MEDALS_RT_BUNDLE=/opt/bundle

WORKDIR /workspace

# Not root. What is kept between runs (compiled graphs) goes to the only place that is surely
# writable; mount a folder there to keep it for the next container.
ENV HOME=/tmp MEDALS_RT_CACHE=/tmp/medals-rt PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000

FROM base AS serve
USER 0:0
RUN pip install --no-cache-dir --constraint /opt/medals-rt/constraints.txt \
      "/opt/medals-rt[cpu,formats,dicom,preview,serve]"
USER 1000:1000
EXPOSE 8700
CMD ["medals-rt", "serve", "--host", "0.0.0.0"]

FROM base
COPY predict.sh /workspace/predict.sh
USER 1000:1000
CMD ["sh", "predict.sh"]
