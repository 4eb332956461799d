package meshgrpc_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy/jwt"
)

// A gRPC server verifies the tokens of its calls. A bad token gets UNAUTHENTICATED, and a token that is not accepted here gets
// PERMISSION_DENIED. The handler sees the user, but not the token.
func TestTokens(t *testing.T) {
	leak.Check(t)
	issuer := jwttest.New("a")
	m := meshtest.New(t, "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\nspec:\n"+
		"  jwtRules: [{issuer: i, audiences: [shop], jwks: '"+jwttest.KeySet(issuer)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]}]\n---\n"+
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: users, namespace: default}\n"+
		"spec: {rules: [{from: [{source: {requestPrincipals: ['i/*']}}]}]}\n")
	say := func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		user := "nobody"
		if claims := jwt.ClaimsOf(ctx); claims != nil {
			user = claims.Subject()
		}
		return user + " " + strings.Join(md["x-sub"], ",") + " " + strings.Join(md["authorization"], ",")
	}
	target := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			return nil, status.Error(codes.Aborted, say(ctx))
		},
		Bidi: func(s grpctest.BidiServer) error { return status.Error(codes.Aborted, say(s.Context())) },
	}, meshgrpc.ServerOptions(m)...)
	client := grpctest.NewClient(grpctest.Dial(t, target))
	for _, test := range []struct {
		name, token string
		code        codes.Code
		message     string
	}{
		{"good", issuer.Token(`{"iss":"i","sub":"alice","aud":"shop"}`), codes.Aborted, "alice alice "},
		{"none", "", codes.PermissionDenied, "RBAC: access denied"},
		{"expired", issuer.Token(`{"iss":"i","sub":"alice","aud":"shop","exp":1000000000}`), codes.Unauthenticated, "Jwt is expired"},
		{"forged", jwttest.New("a").Token(`{"iss":"i","sub":"alice","aud":"shop"}`), codes.Unauthenticated, "Jwt verification fails"},
		{"for others", issuer.Token(`{"iss":"i","sub":"alice","aud":"bank"}`), codes.PermissionDenied, "Audiences in Jwt are not allowed"},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-sub", "root")
		if test.token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+test.token)
		}
		_, unary := client.UnaryCall(ctx, new(grpctest.Request))
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		for kind, err := range map[string]error{"unary": unary, "stream": err} {
			if s := status.Convert(err); s.Code() != test.code || s.Message() != test.message {
				t.Errorf("%s, %s: got %v %q, want %v %q", test.name, kind, s.Code(), s.Message(), test.code, test.message)
			}
		}
	}
}
