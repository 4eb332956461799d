// The dashboards and alert rules, and what makes them. They have a go.mod of their own since nobody else needs what makes them.
module github.com/nosidecar/mesh/dashboards

go 1.26.8

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
