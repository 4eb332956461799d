// Package consul speaks to a HashiCorp Consul agent.
package consul
