package authz_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/nosidecar/mesh/policy/authz"
)

func Example() {
	authorizer, err := authz.Compile([]authz.Policy{
		{
			Name:   "default/payment-service",
			Action: authz.Allow,
			Rules: []authz.Rule{{
				From: []authz.Source{{Principals: []string{"cluster.local/ns/default/sa/order-service"}}},
				To:   []authz.Operation{{Methods: []string{"POST"}, Paths: []string{"/v1/charge"}}},
			}},
		},
	}, authz.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, target := range []string{"/v1/charge", "/v1//charge", "/v1/refund"} {
		d := authorizer.Decide(&authz.Request{
			Principal: "cluster.local/ns/default/sa/order-service",
			Method:    "POST",
			Target:    target,
		})
		fmt.Println(target, d.Allowed, d.Reason)
	}
	// Output:
	// /v1/charge true matched an ALLOW policy
	// /v1//charge false no ALLOW policy matched
	// /v1/refund false no ALLOW policy matched
}

func ExampleHandler() {
	authorizer, err := authz.Compile([]authz.Policy{{
		Name:   "default/no-admin",
		Action: authz.Deny,
		Rules:  []authz.Rule{{To: []authz.Operation{{Paths: []string{"/admin", "/admin/*"}}}}},
	}}, authz.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := &authz.Handler{
		Next:       http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }),
		Authorizer: authorizer,
	}
	for _, target := range []string{"/", "/x/%2e%2e/admin"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 hello
	// 403 RBAC: access denied
}
