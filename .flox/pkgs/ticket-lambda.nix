# /bin/ticket-lambda, which Lambda starts: the runtime client with the handler's name, in a Python environment with the
# function. A plain exec, because Lambda has no /dev/fd for process substitution and only /tmp is writable.
{
  lib,
  python313,
  runtimeShell,
  stdenvNoCC,
  ticket-enrichment,
}:

let
  # The function's packages, as in deploy/function_packages.py: no other programs and no training data.
  handlerFolders = lib.filterAttrs (_: type: type == "directory") (builtins.readDir ../../handler);
  function = ticket-enrichment.overridePythonAttrs (_: {
    src = lib.fileset.toSource {
      root = ../..;
      fileset = lib.fileset.unions [
        ../../LICENSE
        ../../README.md
        ../../pyproject.toml
        (lib.fileset.difference ../../enrichment ../../enrichment/export)
        (lib.fileset.difference ../../handler (
          lib.fileset.unions (map (name: ../../handler + "/${name}") (lib.attrNames handlerFolders))
        ))
        ../../handler/aws
      ];
    };
  });
  python = python313.withPackages (_: [ function ] ++ function.optional-dependencies.lambda);
in
stdenvNoCC.mkDerivation {
  pname = "ticket-lambda";
  inherit (ticket-enrichment) version;

  dontUnpack = true;
  # -P: a file in the working directory, /tmp, must not shadow a module.
  installPhase = ''
    runHook preInstall
    mkdir -p $out/bin
    printf '%s\n' '#!${runtimeShell}' \
      'exec ${python}/bin/python3 -P -m awslambdaric "$@"' >$out/bin/ticket-lambda
    chmod +x $out/bin/ticket-lambda
    runHook postInstall
  '';

  # These are the imports of a cold start.
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    ${python}/bin/python3 -P -c 'import awslambdaric.bootstrap, handler.app, handler.settings'
    test -x $out/bin/ticket-lambda
    runHook postInstallCheck
  '';

  meta = {
    description = "The Lambda function that enriches support tickets";
    license = lib.licenses.mit;
    mainProgram = "ticket-lambda";
  };
}
