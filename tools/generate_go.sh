#!/bin/sh
# Writes the Go code of the API, which clients/examples/go imports. Needs Go; the plugins come from the module proxy, once.
set -eu
cd "$(dirname "$0")/.."
example=clients/examples/go
package=orderflow.example/client/ordersv1
bin="$PWD/.tools/go"
for plugin in google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12 google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2; do
    name=${plugin##*/}
    [ -x "$bin/${name%@*}" ] || GOBIN="$bin" go install "$plugin"
done
# The .proto files name no Go package: whoever generates chooses one.
options=
for file in order order_history order_service; do
    proto=orderflow/orders/v1/$file.proto
    options="$options --go_opt=M$proto=$package --go-grpc_opt=M$proto=$package"
done
mkdir -p "$example/ordersv1"
# shellcheck disable=SC2086 - a list of options
PATH="$bin:$PATH" "${PYTHON:-.venv/bin/python}" -m grpc_tools.protoc -I proto $options \
    --go_out="$example" --go_opt=module=orderflow.example/client \
    --go-grpc_out="$example" --go-grpc_opt=module=orderflow.example/client \
    orderflow/orders/v1/order.proto orderflow/orders/v1/order_history.proto orderflow/orders/v1/order_service.proto
