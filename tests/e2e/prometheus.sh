#!/usr/bin/env bash
# Builds the image of the profile `observe` from Prometheus's own source, for a machine that has Go
# and its modules but can pull no images. Takes some minutes.
set -euo pipefail
image=$(sed -n 's/^ *image: \(prom\/prometheus:.*\)/\1/p' "$(dirname "$0")/../../docker-compose.yml")
# Release 3.5.0 is the Go module's v0.305.0.
module=github.com/prometheus/prometheus
version=$(sed 's/.*:v\(3\)\.\([0-9]*\)\.\([0-9]*\)$/v0.\1 \2 \3/' <<<"$image" \
  | awk '{ printf "%s%02d.%d", $1, $2, $3 }')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
go mod init image
go get "$module/cmd/prometheus@$version" "$module/cmd/promtool@$version"
CGO_ENABLED=0 go build -ldflags "-s -w" "$module/cmd/prometheus"
CGO_ENABLED=0 go build -ldflags "-s -w" "$module/cmd/promtool"
cat >Dockerfile <<'D'
FROM scratch
COPY prometheus promtool /bin/
COPY --chown=65534:65534 data /prometheus
USER 65534:65534
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
D
mkdir data
docker build --tag "$image" .
