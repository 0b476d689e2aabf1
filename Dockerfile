# Three stages: the library of the viewer's page, then a virtual environment, then only that; runs as an ordinary user.
# Slides and results are mounted: docker run --rm -v "$PWD:/data" wsi-ips run recipe.yaml
# To look at a run: docker run --rm -v "$PWD:/data" -p 127.0.0.1:8765:8765 wsi-ips view RUN --host 0.0.0.0 --remote-access
FROM node:22-slim AS page
WORKDIR /page
COPY wsi_ips/viewer/package.json wsi_ips/viewer/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM python:3.11-slim AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY wsi_ips ./wsi_ips
COPY --from=page /page/node_modules ./wsi_ips/viewer/node_modules
COPY pipelines ./pipelines
RUN python -m venv /opt/wsi-ips \
 && /opt/wsi-ips/bin/pip install --no-cache-dir '.[cluster,dicom,lora,parquet,remote,timm,tracking]'

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 pathology
COPY --from=build /opt/wsi-ips /opt/wsi-ips
ENV PATH=/opt/wsi-ips/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
USER pathology
WORKDIR /data
ENTRYPOINT ["wsi-ips"]
CMD ["--help"]
