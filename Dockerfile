# syntax=docker/dockerfile:1
#
# docker build --tag switchyard .
# docker run --rm --publish 127.0.0.1:8080:8080 switchyard
#
# packaging/README.md says what the image does by default, and how to configure it.

FROM rust:1.95-bookworm AS build
RUN rustup target add wasm32-wasip2
WORKDIR /switchyard
COPY . .
# Neither what was downloaded nor what was compiled is kept in a layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/switchyard/target,sharing=locked \
    make release \
    && mkdir /out \
    && cp -R target/dist/switchyard-*-linux/. /out

# The C library and its certificates, and neither a shell nor a package manager.
# Its user is 65532, "nonroot".
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/bin/switchyard /usr/local/bin/switchyard
# Those that ship, to be copied or mounted into the plugin directory.
COPY --from=build /out/lib/switchyard/plugins /usr/local/lib/switchyard/plugins
COPY --from=build /out/lib/switchyard/plugins/acl.wasm /etc/switchyard/plugins/10-acl.wasm
COPY packaging/docker/10-acl.toml /etc/switchyard/plugins/10-acl.toml
COPY packaging/docker/switchyard.toml /etc/switchyard/switchyard.toml
USER nonroot
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/switchyard", "health", "http://127.0.0.1:8080/livez"]
ENTRYPOINT ["/usr/local/bin/switchyard"]
CMD ["serve", "--config", "/etc/switchyard/switchyard.toml"]
