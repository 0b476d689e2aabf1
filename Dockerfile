# Two stages: install into a virtual environment, then copy only that; runs as an ordinary user.
# Slides and results are mounted: docker run --rm -v "$PWD:/data" wsi-ips run recipe.yaml
FROM python:3.11-slim AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY wsi_ips ./wsi_ips
COPY pipelines ./pipelines
RUN python -m venv /opt/wsi-ips \
 && /opt/wsi-ips/bin/pip install --no-cache-dir .

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 pathology
COPY --from=build /opt/wsi-ips /opt/wsi-ips
ENV PATH=/opt/wsi-ips/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
USER pathology
WORKDIR /data
ENTRYPOINT ["wsi-ips"]
CMD ["--help"]
