# What Lambda starts, /bin/ticket-lambda: its runtime client, given the handler's name, in an interpreter that has the
# function. A plain exec: no /dev/fd on Lambda, so no process substitution, and nothing to write to but /tmp.
{
  lib,
  python313,
  runtimeShell,
  stdenvNoCC,
  ticket-enrichment,
}:

let
  python = python313.withPackages (_: [ ticket-enrichment ] ++ ticket-enrichment.optional-dependencies.lambda);
in
stdenvNoCC.mkDerivation {
  pname = "ticket-lambda";
  inherit (ticket-enrichment) version;

  dontUnpack = true;
  # -P: a file that somebody leaves in the working directory, /tmp, must not take the place of a module.
  installPhase = ''
    runHook preInstall
    mkdir -p $out/bin
    printf '%s\n' '#!${runtimeShell}' \
      'exec ${python}/bin/python3 -P -m awslambdaric "$@"' >$out/bin/ticket-lambda
    chmod +x $out/bin/ticket-lambda
    runHook postInstall
  '';

  # What is imported here is all that a cold start imports.
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
