#!/usr/bin/env bash
# `make image`: builds the function's image with Flox for this architecture, as ticket-lambda:latest in Docker.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v flox >/dev/null; then
    echo "error: there is no flox (flox.dev); make image-standin builds an equivalent image without it" >&2
    exit 1
fi
if ! command -v docker >/dev/null; then
    echo "error: there is no docker, which stores the image; install it" >&2
    exit 1
fi

packages=(ticket-lambda ticket-bundle)
flox build "${packages[@]}"

rm -rf build/lambda
mkdir -p build/lambda
cp -R deploy/lambda/.flox build/lambda/
for package in "${packages[@]}"; do
    path=$(readlink -f "result-$package")
    printf '\n[install.%s]\nstore-path = "%s"\nsystems = ["%s-linux"]\n' "$package" "$path" "$(uname -m)"
done >>build/lambda/.flox/env/manifest.toml
flox containerize -d build/lambda --mode run --runtime docker --tag latest
