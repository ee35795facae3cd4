# Powertools for AWS Lambda from its source distribution, because nixpkgs does not have it. The version is that in
# deploy/constraints.txt; another version needs another hash, which `flox build` prints.
{
  lib,
  fetchPypi,
  python313Packages,
}:

python313Packages.buildPythonPackage rec {
  pname = "aws-lambda-powertools";
  version = "3.37.0";
  pyproject = true;

  src = fetchPypi {
    pname = "aws_lambda_powertools";
    inherit version;
    hash = "sha256-7shd8hbvXpnv0svtAd3uvjRYW2UGJdq8lv3FtHHvj88=";
  };

  build-system = [ python313Packages.hatchling ];
  dependencies = [
    python313Packages.jmespath
    python313Packages.typing-extensions
  ];

  # Its tests need AWS.
  doCheck = false;
  pythonImportsCheck = [
    "aws_lambda_powertools"
    "aws_lambda_powertools.utilities.batch"
  ];

  meta = {
    description = "Logging, metrics and batch processing for AWS Lambda functions";
    license = lib.licenses.mit0;
  };
}
